"""The whole network in one launch, emulated: every kind of stage, whole networks, what is counted of them, refusals."""

from __future__ import annotations

import copy
import ctypes
import json
from collections.abc import Callable
from ctypes import CDLL
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mbv3fast
from benchmarks import timeline
from mbv3fast import BackendError, Preprocess
from mbv3fast.cluster import ClusterPlan, Cut, UncutError, as_bytes, cut, cut_as
from mbv3fast.cluster.latency import Work, predicted_seconds, work_of
from mbv3fast.cluster.memory import SHARED_BYTES
from mbv3fast.cluster.run import ClusterNetwork
from mbv3fast.config import BlockConfig, network
from mbv3fast.cuda import network as launcher
from mbv3fast.fast import build
from mbv3fast.plan import Plan
from tests.cuda.harness import last_launch
from tests.guards import Guards
from tests.networks import calibrate, calibrated_large, photographs, randomise, short_small, trained_small
from tests.numerics import assert_agrees, by_module, exact

HALF, BRAIN = torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def _emulated(emulation: CDLL) -> None:
    assert emulation.mbv3fast_emulated()


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
STAGES = {  # blocks, and how many of them are cut into rows, and how many into rows by groups
    "rows without expansion or squeeze-excite": ((PLAIN,), 1, 0),
    "rows of the first block, with squeeze-excite": ((SQUEEZED,), 1, 0),
    "rows whose blocks each compute squeeze-excite alone": ((PLAIN, EXCITED), 2, 0),
    "rows whose blocks share squeeze-excite": ((PLAIN, EXCITED, WIDE), 3, 0),
    "rows at stride 2": ((PLAIN, EXCITED, NARROW), 3, 0),
    "channels without squeeze-excite": ((PLAIN, EXCITED, NARROW), 2, 0),
    "channels with it": ((PLAIN, EXCITED, WIDE), 2, 0),
    "channels behind channels": ((PLAIN, EXCITED, NARROW, LAST), 2, 0),
    "groups": ((PLAIN, EXCITED, WIDE), 2, 1),
    "groups at stride 2": ((PLAIN, EXCITED), 1, 1),
    "groups behind groups": ((PLAIN, EXCITED, WIDE, NARROW), 1, 3),
    "channels behind groups": ((PLAIN, EXCITED, WIDE, NARROW, LAST), 2, 2),
}
CUTS = [(name, blocks, 1) for name, (_, _, groups) in STAGES.items() for blocks in (1, 4) if groups == 0]
CUTS += [(name, *cut) for name, (_, _, groups) in STAGES.items() for cut in ((4, 2), (8, 4), (8, 2)) if groups > 0]


@pytest.mark.parametrize(("name", "blocks", "sharing"), CUTS)
def test_every_kind_of_stage(emulation: CDLL, name: str, blocks: int, sharing: int) -> None:
    """At odd sizes, in the same bits by any order of threads, and with as much work as is counted."""
    configs, in_rows, in_groups = STAGES[name]
    model, x = made_of(*configs), photographs(2, 64)[:, :, :37, :50].half()
    how = (1,) * in_rows + (sharing,) * in_groups + (blocks,) * (len(configs) - in_rows - in_groups)
    tables = cut_as(plan_of(model), (37, 50), Cut(blocks, 16 * 1024, how))
    out = launched(emulation, tables, x)
    agrees(model, out, x)
    assert torch.equal(out, launched(emulation, tables, x, seed=1)), "the order of threads shows"
    assert torch.equal(out[:1], launched(emulation, tables, x[:1]))
    assert_counted(emulation, tables)


@pytest.mark.parametrize("slot", [6, 8, 32])
def test_chunks_of_any_size(emulation: CDLL, slot: int) -> None:
    model, x = made_of(PLAIN, EXCITED, WIDE, NARROW, LAST, hidden=200), photographs(1, 64).half()
    agrees(model, launched(emulation, cut_as(plan_of(model), (64, 64), Cut(2, slot * 1024, (1, 1, 1, 2, 2))), x), x)


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
def test_dtypes(emulation: CDLL, dtype: torch.dtype) -> None:
    model, x = short_small(), photographs(2, 64).to(dtype)
    agrees(model, launched(emulation, cut(plan_of(model, dtype), (64, 64), 4), x, dtype), x)


def test_a_batch_by_one_cluster_and_by_several(emulation: CDLL) -> None:
    """Each image has the same bits, whoever computes it."""
    model, x = short_small(), photographs(3, 64).half()
    tables = cut(plan_of(model), (64, 64), 4)
    one = launched(emulation, tables, x)
    agrees(model, one, x)
    for clusters, seed in ((2, 0), (3, 1)):
        assert torch.equal(launched(emulation, tables, x, clusters=clusters, seed=seed), one)
    assert torch.equal(launched(emulation, tables, x[1:2]), one[1:2])


@pytest.mark.parametrize("channels", [1, 4])
def test_layouts_and_channels(emulation: CDLL, channels: int) -> None:
    torch.manual_seed(0)
    model = mbv3fast.small(in_chans=channels, width_mult=0.5, num_classes=5)
    randomise(model)
    x = torch.randn(2, channels, 40, 33).half()
    tables = cut(plan_of(model), (40, 33), 2)
    out = launched(emulation, tables, x)
    agrees(model, out, x)
    assert torch.equal(launched(emulation, tables, x.contiguous(memory_format=torch.channels_last)), out)
    assert torch.equal(launched(emulation, tables, torch.cat([x, x], 3)[:, :, :, :33]), out)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"small": trained_small, "large": calibrated_large}


@pytest.mark.parametrize(
    ("name", "size", "blocks", "in_rows"),
    [
        ("small", 64, 16, None),
        ("small", 64, 8, 9),
        ("large", 64, 16, None),
        ("small", 224, 16, None),
        ("large", 224, 16, None),
        *(pytest.param(name, 224, 8, None, marks=pytest.mark.slow) for name in ("small", "large")),
        *(pytest.param("small", 224, 16, in_rows, marks=pytest.mark.slow) for in_rows in (11, 10, 7, 3)),
        *(pytest.param("large", size, 16, None, marks=pytest.mark.slow) for size in (160, 256)),
    ],
)
def test_networks(emulation: CDLL, name: str, size: int, blocks: int, in_rows: int | None) -> None:
    """And what is counted of them, which the emulation counts too."""
    model, x, square = NETWORKS[name](), photographs(1, size).half(), (size, size)
    plan = plan_of(model)
    tables = (
        cut(plan, square, blocks)
        if in_rows is None
        else cut_as(plan, square, Cut(blocks, 28 * 1024, (1,) * in_rows + (blocks,) * (11 - in_rows)))
    )
    out = launched(emulation, tables, x, seed=blocks)
    assert_counted(emulation, tables)
    agrees(model, out, x)


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


@pytest.mark.parametrize(
    ("name", "blocks", "fits", "lacks"), [("large", 16, 272, 288), ("small", 16, 384, 416), ("large", 8, 256, 272)]
)
def test_sizes_that_a_cluster_holds(name: str, blocks: int, fits: int, lacks: int) -> None:
    """As docs/network.md says them."""
    plan = plan_of(NETWORKS[name]())
    tables = cut(plan, (fits, fits), blocks)
    assert max(tables.taken) <= SHARED_BYTES == 227 * 1024
    assert 0 < predicted_seconds(tables.stages, tables.chunks, blocks) < 1e-3
    with pytest.raises(UncutError, match=f"images of {lacks}x{lacks} don't fit a cluster of {blocks}"):
        cut(plan, (lacks, lacks), blocks)


def test_groups_that_a_cluster_has_not() -> None:
    for sharing in ((2, 4), (1, 4, 2), (1, 3), (1, 32)):
        with pytest.raises(ValueError, match=r"^sharing: got \("):
            Cut(16, 16 * 1024, sharing)


@torch.inference_mode(False)
def on_network(model: nn.Module, dtype: torch.dtype = HALF) -> Any:
    own: Any = copy.deepcopy(model).to(dtype).eval()
    own.plan_name = "network"
    return own


@torch.inference_mode()
def test_a_model_by_plan_network() -> None:
    model, x = on_network(short_small()), photographs(3, 64).half()
    decision = model.explain(x)
    assert (decision.backend, decision.fused, decision.by_name) == ("network", True, True)
    assert decision.reason == "CUDA: the whole network in one launch emulated on the CPU"
    agrees(model, model(x), x)
    odd = photographs(1, 64)[:, :, :33, :61].half()
    agrees(model, model(odd), odd)
    with torch.inference_mode(False):
        model.classifier[3] = nn.Linear(1024, 3).half()
    assert model(x).shape == (3, 3), "another layer is seen"


@torch.inference_mode()
def test_bytes() -> None:
    model = on_network(short_small())
    model.preprocess = Preprocess(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    x = torch.randint(0, 256, (2, 3, 37, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).double()[:, None, None] for v in (model.preprocess.mean, model.preprocess.std))
    truth = copy.deepcopy(model).double().reference_forward((x.double() / 255 - mean) / std)
    for given in (x, x.permute(0, 2, 3, 1).contiguous()):
        assert_agrees(model(given), model.reference_forward(given), truth)


@torch.inference_mode()
def test_tensorflows_padding() -> None:
    with torch.inference_mode(False):
        torch.manual_seed(0)
        model = mbv3fast.small(source="timm-tf", width_mult=0.5, num_classes=7)
        randomise(model)
        calibrate(model, photographs(8, 64, seed=1))
    for size in ((64, 50), (61, 64)):
        x = photographs(1, 64)[:, :, : size[0], : size[1]].half()
        agrees(model, on_network(model)(x), x)


@torch.inference_mode()
def test_what_a_cluster_can_not_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1, 3, 64, 64).half()
    with torch.inference_mode(False):
        dilated, features = mbv3fast.small(output_stride=16), mbv3fast.small(features_only=True)
    with pytest.raises(BackendError, match=r"^plan: 'network' can't serve \(1, 3, 900, 900\): images of 900x900 don't"):
        on_network(short_small())(torch.zeros(1, 3, 900, 900).half())
    with pytest.raises(BackendError, match=r"^plan: 'network' can't serve this model: features\.\S+ has a dilation"):
        on_network(dilated)(x)
    with pytest.raises(BackendError, match=r"'network' can't serve torch\.float32 on cpu"):
        on_network(short_small(), torch.float32)(x.float())
    with pytest.raises(BackendError, match="'network' can't serve this model"):
        on_network(features)(x)
    monkeypatch.setattr("mbv3fast.cluster.run.most_clusters", lambda *_: 0)
    with pytest.raises(BackendError, match=r"the device has no clusters of blocks$"):
        on_network(short_small())(x)


def test_a_network_of_other_parts() -> None:
    plan = plan_of(short_small())
    first = replace(PLAIN, in_channels=12, expanded=48)
    narrow = replace(network("small"), stem=12, blocks=(first,), last_convs=(96,))
    with pytest.raises(UncutError, match=r"has 12 channels, needs a multiple of 8"):
        cut(plan_of(build(narrow)), (64, 64))
    with pytest.raises(UncutError, match="has 5 input channels, needs up to 4"):
        cut(plan_of(mbv3fast.small(in_chans=5)), (64, 64))
    with pytest.raises(UncutError, match="a cluster computes a stem, blocks, one last convolution and linear layers"):
        cut(replace(plan, steps=plan.steps[:-2]), (64, 64))
    with pytest.raises(UncutError, match=r"is no 3x3 convolution at stride 2"):
        cut(replace(plan, steps=plan.steps[1:]), (64, 64))


def test_a_timeline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages one after another in every block, by products of tensor cores where there is no clock; as a picture."""
    pytest.importorskip("matplotlib")
    plan, x = plan_of(short_small()), photographs(3, 64).half()
    stamps = ClusterNetwork(plan).timeline(x)
    assert stamps.shape == (2 * 16, len(cut(plan, (64, 64)).stages) + 1)
    assert (stamps.diff(dim=1) >= 0).all()
    assert (stamps[:, -1] > stamps[:, 0]).all()
    monkeypatch.setattr(timeline, "small", lambda **_: copy.deepcopy(short_small()))
    timeline.main(["small", "--size", "64", "--out", str(tmp_path / "t.png"), "--json", str(tmp_path / "t.json")])
    assert (tmp_path / "t.png").read_bytes()[:4] == b"\x89PNG"
    assert len(json.loads((tmp_path / "t.json").read_text())["predicted"]) == stamps.shape[1] - 1
