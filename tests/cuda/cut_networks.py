"""Networks of a few blocks, cut over clusters and launched in emulation, and what is counted of such launches."""

from __future__ import annotations

import copy
import ctypes
from ctypes import CDLL
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mbv3fast.cluster import ClusterPlan, as_bytes
from mbv3fast.cluster.latency import Work, work_of
from mbv3fast.config import BlockConfig, network
from mbv3fast.cuda import network as launcher
from mbv3fast.fast import build
from mbv3fast.plan import Plan
from tests.cuda.harness import last_launch
from tests.guards import Guards
from tests.networks import calibrate, photographs, randomise
from tests.numerics import assert_agrees, by_module, exact

HALF = torch.float16


def plan_of(model: nn.Module, dtype: torch.dtype = HALF) -> Plan:
    own: Any = copy.deepcopy(model).to(dtype).eval()
    plan: Plan = own.plan("cuda")
    return plan


def launched(
    library: CDLL, tables: ClusterPlan, x: Tensor, dtype: torch.dtype = HALF, clusters: int = 1, seed: int = 0
) -> Tensor:
    """Logits of x, by threads in an order, between bands of NaN."""
    guards = Guards()
    out = guards.empty(x.shape[0], tables.outputs, dtype=dtype)
    library.mbv3fast_emulate(90, seed)
    launcher.network(
        x,
        tables.weights,
        as_bytes(tables.stages),
        as_bytes(tables.chunks),
        out=out,
        stage_count=len(tables.stages),
        chunk_count=len(tables.chunks),
        cluster=tables.cut.blocks,
        clusters=clusters,
        slot=tables.cut.slot,
        shared_bytes=tables.shared_bytes,
        pdl=True,
    )
    guards.check()
    asked = last_launch(library)
    assert asked == (clusters * tables.cut.blocks, launcher.THREADS, tables.shared_bytes, tables.cut.blocks)
    return out


def agrees(model: nn.Module, out: Tensor, x: Tensor) -> None:
    own: Any = copy.deepcopy(model).to(out.dtype).eval()
    (plain,), (truth,) = by_module(own, x), exact(own, x)
    assert_agrees(out, plain, truth)


def made_of(*blocks: BlockConfig, last: int = 96, hidden: int = 40) -> nn.Module:
    """A network of these blocks behind a stem of 16 channels, calibrated."""
    torch.manual_seed(0)
    model = build(replace(network("small", num_classes=10), blocks=blocks, last_convs=(last,), hidden=hidden))
    randomise(model)
    calibrate(model, photographs(8, 64, seed=1))
    return model


PLAIN = BlockConfig(16, kernel=3, expanded=16, out_channels=16, squeeze=0, activation="relu", stride=1)
SQUEEZED = replace(PLAIN, squeeze=4)
EXCITED = BlockConfig(16, kernel=5, expanded=48, out_channels=24, squeeze=10, activation="hardswish", stride=2)
WIDE = BlockConfig(24, kernel=5, expanded=136, out_channels=24, squeeze=72, activation="hardswish", stride=1)
NARROW = BlockConfig(24, kernel=3, expanded=72, out_channels=40, squeeze=0, activation="relu", stride=2)
LAST = BlockConfig(40, kernel=3, expanded=120, out_channels=40, squeeze=32, activation="hardswish", stride=1)


def assert_counted(library: CDLL, tables: ClusterPlan) -> None:
    """That the last launch, of one image, did what is counted: products, bytes of weights, bytes for other blocks, and
    waits of threads at the cluster's barriers and at those of blocks.
    """
    done, blocks = (ctypes.c_int64 * 5)(), tables.cut.blocks
    library.mbv3fast_emulation_done(ctypes.byref(done))
    work = [one for stage in work_of(tables.stages, tables.chunks, blocks) for one in stage.blocks]
    total = Work(*map(sum, zip(*work, strict=True)))
    table = blocks * len(as_bytes(tables.stages))  # which each block has a copy of
    assert list(done[:3]) == [total.products, total.weights + table, total.remote]
    assert done[3] == launcher.THREADS * total.cluster_barriers
    assert done[4] == launcher.THREADS * (total.barriers + blocks), "one before all"
