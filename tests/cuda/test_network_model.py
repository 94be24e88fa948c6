"""Models on plan `network`, emulated: what they serve and refuse, their tables, a timeline."""

from __future__ import annotations

import copy
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from ctypes import CDLL
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mbv3fast
from benchmarks import timeline
from mbv3fast import BackendError, Preprocess
from mbv3fast.cluster import ClusterPlan, Cut, UncutError, cut, cut_as
from mbv3fast.cluster.run import ClusterNetwork
from mbv3fast.config import network
from mbv3fast.fast import build
from tests.cuda.cut_networks import (
    HALF,
    PLAIN,
    agrees,
    plan_of,
)
from tests.networks import calibrate, photographs, randomise, short_small
from tests.numerics import assert_agrees


@pytest.fixture(autouse=True)
def _emulated(emulation: CDLL) -> None:
    assert emulation.mbv3fast_emulated()


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
    assert mbv3fast.load("digits", plan="network").plan_name == "network"


def test_threads_have_one_table() -> None:
    """Whose weights a graph of one thread would read, after another has made them too."""
    made, x, begin = ClusterNetwork(plan_of(short_small())), torch.zeros(1, 3, 32, 32).half(), threading.Barrier(3)

    def ask(_: int) -> ClusterPlan:
        begin.wait()
        return made.tables(x)

    with ThreadPoolExecutor(3) as pool:
        assert len(set(map(id, pool.map(ask, range(3))))) == 1


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
        strange = on_network(short_small())
        strange.classifier[3] = nn.Sequential(nn.Linear(1024, 3).half())
    with pytest.raises(BackendError, match=r"^plan: 'network' can't serve \(1, 3, 900, 900\): images of 900x900 don't"):
        on_network(short_small())(torch.zeros(1, 3, 900, 900).half())
    with pytest.raises(BackendError, match=r"^plan: 'network' can't serve this model: features\.\S+ has a dilation"):
        on_network(dilated)(x)
    with pytest.raises(BackendError, match=r"'network' can't serve torch\.float32 on cpu"):
        on_network(short_small(), torch.float32)(x.float())
    with pytest.raises(BackendError, match="'network' can't serve this model"):
        on_network(features)(x)
    with pytest.raises(BackendError, match="can't serve this model: its classifier is left to PyTorch: "):
        strange(x)
    monkeypatch.setattr("mbv3fast.cluster.run.most_clusters", lambda *_: 0)
    with pytest.raises(BackendError, match=r"the device has no clusters of blocks$"):
        on_network(short_small())(x)


def test_a_network_of_other_parts() -> None:
    plan = plan_of(short_small())
    first = replace(PLAIN, in_channels=12, expanded=48)
    narrow = replace(network("small"), stem=12, blocks=(first,), last_convs=(96,))
    with pytest.raises(UncutError, match=r"has 12 channels, needs a multiple of 8"):
        cut(plan_of(build(narrow)), (64, 64))
    halved = replace(PLAIN, stride=2)
    wide = replace(narrow, stem=16, blocks=(halved, halved, replace(halved, out_channels=2048)))
    with pytest.raises(UncutError, match=r"has 2048 inputs, of which 16 rows are larger than a slot"):
        cut_as(plan_of(build(wide)), (32, 32), Cut(1, 32 * 1024, (1, 1, 1)))
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
