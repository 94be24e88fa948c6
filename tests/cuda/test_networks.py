"""Whole networks on the plan of CUDA's blocks: the very steps, buffers and launches of a GPU, emulated.

Stem and head, which CUDA doesn't cover, are PyTorch's here.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from ctypes import CDLL
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import mbv3fast
from mbv3fast import Preprocess, engine
from mbv3fast.engine import target_for
from mbv3fast.fast import FusedMobileNetV3
from mbv3fast.launches import planned_launches
from mbv3fast.launching import Launch, watch_launches
from mbv3fast.ops.target import Target
from mbv3fast.tables import Variant
from tests.cuda.harness import count_launches
from tests.networks import (
    calibrate,
    calibrated_features,
    calibrated_large,
    digit_tiles,
    dilated_features,
    photographs,
    randomise,
    trained_small,
)
from tests.numerics import Network, assert_agrees, assert_engine_agrees

NETWORKS: dict[Variant, Callable[[], Network]] = {"large": calibrated_large, "small": trained_small}
HALF, BRAIN = torch.float16, torch.bfloat16


@pytest.fixture(autouse=True)
def _emulated(emulation: CDLL) -> None:
    assert emulation.mbv3fast_emulated()


def on_cuda(model: nn.Module, dtype: torch.dtype = HALF) -> Any:
    """A copy that asks for CUDA kernels."""
    own: Any = copy.deepcopy(model).to(dtype)
    own.backend = "cuda"
    return own.eval()


def images(name: Variant, count: int = 2) -> Tensor:
    return digit_tiles()[:count] if name == "small" else photographs(count, 64)


@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: Variant, dtype: torch.dtype) -> None:
    assert_engine_agrees(on_cuda(NETWORKS[name](), dtype), images(name).to(dtype))


@pytest.mark.parametrize("name", ["small", pytest.param("large", marks=pytest.mark.slow)])
def test_networks_at_224(name: Variant) -> None:
    assert_engine_agrees(on_cuda(NETWORKS[name]()), photographs(1, 224).half())


@pytest.mark.parametrize("name", ["small", pytest.param("large", marks=pytest.mark.slow)])
def test_networks_at_odd_sizes(name: Variant) -> None:
    assert_engine_agrees(on_cuda(NETWORKS[name]()), photographs(3, 97)[:, :, :, :41].half())


@pytest.mark.parametrize(("name", "chip", "sms"), [("small", 80, 108), ("large", 86, 84), ("small", 90, 1)])
def test_networks_as_other_chips_run_them(
    emulation: CDLL, monkeypatch: pytest.MonkeyPatch, name: Variant, chip: int, sms: int
) -> None:
    """Without clusters, with less shared memory; with so few multiprocessors that two images are many."""
    monkeypatch.setattr(
        engine, "cuda_target", lambda *_, **__: Target(sms, pdl=chip >= 90, cuda=True, capability=chip, triton=False)
    )
    emulation.mbv3fast_emulate(chip, 1)
    assert_engine_agrees(on_cuda(NETWORKS[name]()), images(name).half())


@pytest.mark.parametrize("network", [calibrated_features, dilated_features])
def test_feature_maps(network: Callable[[], Network]) -> None:
    """Blocks with dilation, which CUDA kernels don't cover, are computed by others."""
    assert_engine_agrees(on_cuda(network()), photographs(1, 64).half())


def test_the_digits_are_read_as_the_reference_reads_them() -> None:
    model, x = on_cuda(trained_small()), digit_tiles()[:6].half()
    with torch.inference_mode():
        got, wanted = model(x).argmax(1), model.reference_forward(x).argmax(1)
    assert torch.equal(got, wanted)
    assert torch.equal(got, torch.arange(6))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_bytes(layout: str) -> None:
    model = on_cuda(trained_small())
    model.preprocess = Preprocess(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    x = torch.randint(0, 256, (1, 3, 37, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    given = x.permute(0, 2, 3, 1).contiguous() if layout == "NHWC" else x
    with torch.inference_mode():
        got, plain = model(given), model.reference_forward(given)
        mean, std = (torch.tensor(v).double()[:, None, None] for v in (model.preprocess.mean, model.preprocess.std))
        truth = copy.deepcopy(model).double().reference_forward((x.double() / 255 - mean) / std)
    assert_agrees(got, plain, truth)


def test_tensorflows_padding() -> None:
    """Zeros on the right and below alone, where an even size is halved."""
    torch.manual_seed(0)
    model = mbv3fast.small(source="timm-tf")
    randomise(model)
    calibrate(model, photographs(8, 64, seed=1))
    assert_engine_agrees(on_cuda(model), photographs(2, 64)[:, :, :, :50].half())


def test_explain_says_cuda() -> None:
    model, x = on_cuda(trained_small()), images("small").half()
    with torch.inference_mode():
        decision = model.explain(x)
    assert (decision.backend, decision.fused, decision.by_name) == ("cuda", True, True)
    assert decision.reason == "CUDA: fused blocks emulated on the CPU, all else by PyTorch"


class Watching(TorchDispatchMode):
    """Counts the aten ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += not func.is_view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", NETWORKS)
def test_no_op_of_pytorch_computes_a_block(name: Variant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is allocated for outputs, and nothing else; what else PyTorch does is for stem and head."""
    model, x = on_cuda(NETWORKS[name]()), images(name, 1).half()
    with torch.inference_mode():
        run = model.service(x).engine
        blocks = [call for call, step in zip(run._calls, run.plan.steps, strict=True) if step.op in BLOCKS]
        assert len(blocks) == len(model.config.blocks)
        monkeypatch.setattr(run, "_calls", blocks)
        given = {blocks[0].inputs["x"]: model.features[0](x).contiguous(memory_format=torch.channels_last)}
        with Watching() as watching:
            run._run(given, {"target": Target(cuda=True, triton=False)})
    assert set(+watching.seen) == {"empty"}, watching.seen


BLOCKS = {"inverted_residual", "depthwise_project", "depthwise_excite_project"}
MEGABYTES = {"large": 6.1, "small": 3.0}  # an image's at 224, in float16
LAUNCHES = {"large": 35, "small": 32}


@pytest.mark.parametrize("name", NETWORKS)
def test_launches_and_bytes_that_are_planned(name: Variant) -> None:
    pytest.importorskip("triton")
    plan = getattr(mbv3fast, name)(backend="cuda").half().eval().plan()
    for count in (1, 128):
        planned = list(planned_launches(plan, (count, 3, 224, 224)))
        assert len(planned) == LAUNCHES[name]
        moved = sum(launch.traffic.read + launch.traffic.written for launch in planned)
        assert moved <= MEGABYTES[name] * 1e6 * count


@pytest.mark.parametrize("name", NETWORKS)
def test_launches_that_are_made(emulation: CDLL, name: Variant) -> None:
    """They are those that were planned, seen by the emulation too."""
    pytest.importorskip("triton")
    model, x = on_cuda(NETWORKS[name]()), images(name).half()
    seen: list[Launch] = []
    with torch.inference_mode():
        service = model.service(x)
        service.engine.images_at_once(tuple(x.shape))  # counted by a dry run, once
        before = count_launches(emulation)
        with watch_launches(seen.append):
            service.engine(x)
    assert len(seen) == count_launches(emulation) - before
    plan = service.engine.plan
    planned = planned_launches(plan, tuple(x.shape), target_for(plan, x.device))
    assert list(map(described, seen)) == [described(p.launch) for p in planned]
    assert {step.op for step in plan.steps} - BLOCKS == {"stem_conv", "pointwise_mean_linear", "linear"}


def test_the_launch_of_a_network_moves_what_is_counted(emulation: CDLL) -> None:
    model, x = copy.deepcopy(trained_small()).half().eval(), photographs(2, 32).half()
    model.plan_name = "network"
    seen: list[Launch] = []
    with torch.inference_mode():
        engine = model.service(x).engine
        before = count_launches(emulation)
        with watch_launches(seen.append):
            engine(x)
    (launch,) = seen
    totals = engine.plan.to_dict(tuple(x.shape))["totals"]
    assert totals["launches"] == count_launches(emulation) - before == 1
    assert (totals["bytes_read"], totals["bytes_written"]) == (launch.reads["x"].nbytes, launch.writes["out"].nbytes)
    with pytest.raises(ValueError, match=r"^plan: got 'network', one launch"):
        list(planned_launches(engine.plan, tuple(x.shape)))


def described(launch: Launch) -> tuple[Any, ...]:
    """What of a launch the tensors' places don't change."""
    tensors = {name: (tuple(t.shape), t.dtype) for name, t in {**launch.reads, **launch.writes}.items()}
    constants = {name: value for name, value in launch.constants.items() if name != "PDL"}
    return launch.kernel.name, launch.grid, tensors, launch.sizes, constants


def test_what_cuda_does_not_cover() -> None:
    """A dilated convolution, channels not in eights, more outputs than any tile has: PyTorch's, among CUDA's."""
    torch.manual_seed(0)
    config = mbv3fast.small().config
    blocks = list(config.blocks)
    blocks[2] = replace(blocks[2], expanded=100)
    blocks[3] = replace(blocks[3], out_channels=44)
    blocks[4] = replace(blocks[4], in_channels=44, squeeze=0, out_channels=88)
    blocks[5] = replace(blocks[5], in_channels=88)
    model = FusedMobileNetV3(replace(config, blocks=tuple(blocks)))
    dilated = model.features[9].block[1][0]
    dilated.dilation, dilated.padding = (2, 2), (4, 4)
    randomise(model)
    calibrate(model, photographs(8, 64, seed=1))
    own = on_cuda(model)
    x = photographs(2, 64).half()
    alone = Target(cuda=True, triton=False)
    covered = {planned.step.name for planned in planned_launches(own.plan(), tuple(x.shape), alone)}
    steps = [step.name for step in own.plan().steps if step.name.startswith("features.")]
    assert {name.split(".")[1] for name in steps if name not in covered} == {"0", "3", "4", "5", "9"}
    assert_engine_agrees(own, x)


@pytest.mark.parametrize("options", [{"width_mult": 1.25}, {"minimal": True}, {"width_mult": 0.5}])
def test_other_networks(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = mbv3fast.small(**options)
    randomise(model)
    calibrate(model, photographs(8, 64, seed=1))
    own = on_cuda(model)
    x = photographs(1, 64).half()
    assert any(planned_launches(own.plan(), tuple(x.shape), Target(cuda=True, triton=False)))
    assert_engine_agrees(own, x)
