"""The engine keeps the rule of `numerics` on every kind of network and input, and is really what runs."""

from __future__ import annotations

import copy
import weakref
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import mbv3fast
from mbv3fast import engine as engine_module
from mbv3fast.config import NetworkConfig, network
from mbv3fast.engine import Engine
from mbv3fast.fast import FusedMobileNetV3, build
from mbv3fast.plan import INPUT
from mbv3fast.preprocess import Preprocess
from tests.networks import (
    calibrate,
    calibrated_features,
    calibrated_large,
    digit_tiles,
    photographs,
    randomise,
    trained_small,
)
from tests.numerics import Network, assert_agrees, by_engine, by_module, exact

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def rw_config() -> NetworkConfig:
    """timm's mobilenetv3_rw: the block's activation inside squeeze-excite, no skip in block 1, no head bias."""
    config = network("large", num_classes=10, bn_eps=1e-3)
    blocks = [replace(b, skip=i > 0, squeeze_activation=b.activation) for i, b in enumerate(config.blocks)]
    return replace(config, blocks=tuple(blocks), head_bias=False)


def dilated() -> FusedMobileNetV3:
    """Output stride 16, as segmentation networks have it: the last stage dilated in place of its stride."""
    model = mbv3fast.large(num_classes=10)
    for block in model.features[13:16]:
        conv = block.depthwise[0]
        conv.stride, conv.dilation, conv.padding = (1, 1), (2, 2), (4, 4)
    return model


def calibrated(model: Network) -> Network:
    """Random biases, then the statistics of photographs, but no channel that magnifies roundings manifold."""
    randomise(model)
    calibrate(model, photographs(4, 96, seed=1)[:, : model.config.in_chans])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
            module.running_var.clamp_(min=module.running_var.mean().item() / 4)
    return model


# Each a network and the sizes (height, width) and batch of an input.
SPECIAL: dict[str, tuple[Callable[[], Network], tuple[int, int, int]]] = {
    "odd sizes": (lambda: mbv3fast.small(num_classes=10), (3, 97, 33)),
    "smallest": (lambda: mbv3fast.small(num_classes=10), (1, 32, 32)),
    "torchvision's": (lambda: mbv3fast.small(num_classes=10, se_divisor=8), (2, 64, 64)),
    "narrow": (lambda: mbv3fast.large(num_classes=10, source="timm", width_mult=0.5), (2, 64, 64)),
    "minimal": (lambda: mbv3fast.large(num_classes=10, minimal=True), (2, 64, 96)),
    "same padding, even": (lambda: mbv3fast.small(num_classes=10, tf_same_padding=True), (2, 64, 96)),
    "same padding, odd": (lambda: mbv3fast.small(num_classes=10, tf_same_padding=True), (1, 65, 97)),
    "timm's rw": (lambda: build(rw_config()), (2, 64, 64)),
    "dilated": (dilated, (2, 96, 65)),
    "one channel": (lambda: mbv3fast.small(num_classes=10, in_chans=1), (2, 64, 64)),
    "embedding": (lambda: mbv3fast.small(num_classes=0), (2, 64, 64)),
    "some levels": (lambda: mbv3fast.small(features_only=True, out_indices=(1, 3)), (2, 64, 64)),
}


def assert_keeps_the_rule(model: Network, x: Tensor, dtype: torch.dtype) -> None:
    model, x = copy.deepcopy(model).to(dtype), x.to(dtype)
    before = x.clone()
    outputs = by_engine(model, x)
    assert torch.equal(x, before)
    truths, plains = exact(model, x), by_module(model, x)
    assert len(outputs) == len(truths)
    for got, plain, truth in zip(outputs, plains, truths, strict=True):
        assert_agrees(got, plain, truth)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 3, 40])
def test_the_trained_network(batch: int, dtype: torch.dtype) -> None:
    assert_keeps_the_rule(trained_small(), digit_tiles()[:batch], dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "size"), [(1, 224), (3, 128)])
def test_the_calibrated_network(batch: int, size: int, dtype: torch.dtype) -> None:
    assert_keeps_the_rule(calibrated_large(), photographs(batch, size, seed=2), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_calibrated_features(dtype: torch.dtype) -> None:
    assert_keeps_the_rule(calibrated_features(), photographs(2, seed=2), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", SPECIAL)
def test_every_kind_of_network(case: str, dtype: torch.dtype) -> None:
    make, (batch, height, width) = SPECIAL[case]
    torch.manual_seed(0)
    model = calibrated(make())
    x = photographs(batch, 128, seed=2)[:, : model.config.in_chans, :height, :width]
    assert_keeps_the_rule(model, x, dtype)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "channels_last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second pixel": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "a crop": lambda x: torch.nn.functional.pad(x, (3, 5, 2, 1), value=9.0)[:, :, 2:-1, 3:-5],
    "HWC memory of one image": lambda x: x.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1),
    "expanded batch": lambda x: x[:1].expand(3, -1, -1, -1),
    "flipped strides": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("features_only", [False, True])
def test_any_memory_layout(layout: str, features_only: bool) -> None:
    model = calibrated_features() if features_only else calibrated_large()
    x = LAYOUTS[layout](photographs(3, 64, seed=2))
    plain = x.contiguous(memory_format=torch.contiguous_format)
    before = x.clone()
    for got, expected in zip(by_engine(model, x), by_engine(model, plain), strict=True):
        assert torch.equal(got, expected)
    assert torch.equal(x, before)


def test_the_same_input_gives_the_same_bits() -> None:
    model, x = calibrated_large(), photographs(3, 64, seed=2)
    assert torch.equal(*[by_engine(copy.deepcopy(model), x)[0] for _ in range(2)])


def test_an_output_is_the_callers_own() -> None:
    model, x = calibrated_features(), photographs(2, 64, seed=2)
    first = by_engine(model, x)
    kept = [level.clone() for level in first]
    by_engine(model, x.flip(0))
    assert all(torch.equal(level, copied) for level, copied in zip(first, kept, strict=True))
    with torch.inference_mode():
        for level in first:
            level.zero_()
    assert all(torch.equal(level, copied) for level, copied in zip(by_engine(model, x), kept, strict=True))


class Ops(TorchDispatchMode):
    """Counts the aten ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def ops(forward: Callable[[Tensor], Any], x: Tensor, guard: Callable[[], Any] = torch.inference_mode) -> Counter[str]:
    with guard(), Ops() as mode:
        forward(x)
    return mode.seen


def total(seen: Counter[str], part: str) -> int:
    """How often ops ran whose name contains `part`."""
    return sum(count for name, count in seen.items() if part in name)


@pytest.mark.parametrize(("model", "norms"), [(calibrated_large, 46), (calibrated_features, 46), (trained_small, 34)])
@pytest.mark.parametrize("guard", [torch.inference_mode, torch.no_grad])
def test_the_engine_runs_no_norm(model: Callable[[], Network], norms: int, guard: Callable[[], Any]) -> None:
    subject, x = copy.deepcopy(model()), photographs(1, 64, seed=2)
    plain, first, fused = (ops(f, x, guard) for f in (subject.reference_forward, subject, subject))
    assert (total(plain, "batch_norm"), total(plain, "rsqrt")) == (norms, 0)
    assert (total(first, "batch_norm"), total(first, "rsqrt")) == (0, norms)  # folding happens here, and once
    assert (total(fused, "batch_norm"), total(fused, "rsqrt")) == (0, 0)
    products = sum({"squeeze_excite": 2, "global_mean": 0}.get(step.op, 1) for step in subject.plan().steps)
    assert sum(total(fused, part) for part in ("conv", "linear", "addmm")) == products


def test_values_are_freed_after_their_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each step exactly those tensors live that a later step or the caller reads."""
    plan = calibrated_features().plan()
    living: dict[str, weakref.ref[Tensor]] = {}
    names = iter([step.name for step in plan.steps])
    observed: list[set[str]] = []

    def watched(op: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(**arguments: Any) -> Tensor:
            observed.append({name for name, reference in living.items() if reference() is not None})
            out = op(**arguments)
            for name in [name for name, reference in living.items() if reference() is out]:
                del living[name]  # overwritten in place
            living[next(names)] = weakref.ref(out)
            return out

        return run

    watched_ops = {name: watched(op) for name, op in engine_module.TORCH_OPS.items()}
    monkeypatch.setattr(engine_module, "TORCH_OPS", watched_ops)
    with torch.inference_mode():
        outputs = Engine(plan, Preprocess())(photographs(1, 64, seed=2))
    assert len(outputs) == len(plan.outputs) == 5
    assert len(observed) == len(plan.steps)
    for index, alive in enumerate(observed):
        done = {step.name for step in plan.steps[:index]}
        needed = {source for step in plan.steps[index:] for source in step.inputs.values()} - {INPUT}
        assert alive == done & (needed | set(plan.outputs)), plan.steps[index].name


def test_float64_is_left_to_pytorch() -> None:
    model, x = copy.deepcopy(trained_small()).double(), digit_tiles()[:2].double()
    with torch.inference_mode():
        assert not model.explain(x).fused
        assert torch.equal(model(x), model.reference_forward(x))
