"""The plan: its steps, and its counts against what PyTorch is seen to do."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import mbv3fast
from mbv3fast.fast import FusedFeatureExtractor, FusedMobileNetV3
from mbv3fast.fold import FoldedNetwork, UnsupportedError, fold_features
from mbv3fast.lower import Lowering, lower
from mbv3fast.plan import INPUT, Plan, Step
from mbv3fast.tables import ROWS, STEM, Variant
from mbv3fast.torch_ops import TORCH_OPS
from tests.networks import calibrated_features, calibrated_large, trained_small

VARIANTS: tuple[Variant, ...] = ("large", "small")
MODELS: dict[str, Callable[[], FusedMobileNetV3 | FusedFeatureExtractor]] = {
    "large": calibrated_large,
    "small": trained_small,
    "features": calibrated_features,
    "minimal": lambda: mbv3fast.small(minimal=True).eval(),
    "same padding": lambda: mbv3fast.small(tf_same_padding=True).eval(),
}


def expected_ops(variant: Variant) -> list[str]:
    """The ops of a plan, from the paper's table."""
    ops, width = ["stem_conv"], STEM
    for row in ROWS[variant]:
        ops += ["pointwise_conv"] * (row.expanded != width) + ["depthwise_conv"]
        ops += ["squeeze_excite"] * row.squeeze_excite + ["pointwise_conv"]
        width = row.out
    return [*ops, "pointwise_conv", "global_mean", "linear", "linear"]


def values(plan: Plan, x: Tensor) -> dict[str, Tensor]:
    """Every step's output, run one by one; what a step overwrites is copied first."""
    found = {INPUT: x.contiguous(memory_format=torch.channels_last)}
    for step in plan.steps:
        found[step.name] = TORCH_OPS[step.op](**inputs_of(step, found), **step.tensors, **step.options)
    return found


def inputs_of(step: Step, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of what a step reads, by argument."""
    return {argument: found[name].clone() for argument, name in step.inputs.items()}


@pytest.mark.parametrize(("variant", "steps"), [("large", 57), ("small", 46)])
def test_one_step_a_convolution(variant: Variant, steps: int) -> None:
    plan = getattr(mbv3fast, variant)().eval().plan()
    assert [step.op for step in plan.steps] == expected_ops(variant)
    assert len(plan.steps) == steps
    assert plan.outputs == ("classifier.3",)
    assert plan.backend == "torch"


def test_steps_are_named_after_modules() -> None:
    model = mbv3fast.large().eval()
    for step in model.plan().steps:
        model.get_submodule(step.name)


def test_residuals_join_the_projections_of_blocks_that_have_them() -> None:
    model = mbv3fast.large().eval()
    joined = {step.name for step in model.plan().steps if len(step.inputs) == 2}
    expected = {
        f"features.{index}.block.{len(model.features[index].block) - 1}"
        for index, block in enumerate(model.config.blocks, start=1)
        if block.has_residual
    }
    assert joined == expected
    assert len(joined) == 10


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(2, 3, 64, 64), (1, 3, 33, 97)])
def test_shapes_are_those_of_the_real_outputs(name: str, shape: tuple[int, ...]) -> None:
    plan = MODELS[name]().plan()
    with torch.inference_mode():
        found = values(plan, torch.zeros(shape))
    for step, cost in zip(plan.steps, plan.costs(shape), strict=True):
        assert cost.inputs == tuple(tuple(found[source].shape) for source in step.inputs.values()), step.name
        assert cost.output == tuple(found[step.name].shape), step.name


@pytest.mark.parametrize(("variant", "macs"), [("large", 216.59), ("small", 56.50)])
def test_macs_at_224(variant: Variant, macs: float) -> None:
    totals = getattr(mbv3fast, variant)().eval().plan().to_dict((1, 3, 224, 224))["totals"]
    assert round(totals["macs"] / 1e6, 2) == macs


@pytest.mark.parametrize("name", MODELS)
def test_macs_are_those_that_pytorch_counts(name: str) -> None:
    model, x = MODELS[name](), torch.zeros(3, 3, 97, 64)
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model.reference_forward(x)
    assert 2 * sum(cost.macs for cost in model.plan().costs(tuple(x.shape))) == counter.get_total_flops()


class Traffic(TorchDispatchMode):
    """Counts launches, and bytes read and written of all tensors but `weights`; views are free."""

    def __init__(self, weights: list[Tensor]) -> None:
        super().__init__()
        self.weights = {tensor.untyped_storage().data_ptr() for tensor in weights}
        self.read = self.written = self.launches = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        inputs = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
        self.launches += 1
        self.read += sum(self.size(tensor) for tensor in inputs)
        self.written += self.size(result)
        return result

    def size(self, tensor: Tensor) -> int:
        mine = tensor.untyped_storage().data_ptr() not in self.weights
        return tensor.numel() * tensor.element_size() * mine


def traffic(step: Step, inputs: dict[str, Tensor]) -> tuple[int, int, int]:
    with torch.inference_mode(), Traffic(list(step.tensors.values())) as seen:
        TORCH_OPS[step.op](**inputs, **step.tensors, **step.options)
    return seen.read, seen.written, seen.launches


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_and_launches_are_those_of_the_tensors_passed(name: str, dtype: torch.dtype) -> None:
    plan = copy.deepcopy(MODELS[name]()).to(dtype).plan()
    x = torch.zeros(2, 3, 64, 64, dtype=dtype)
    with torch.inference_mode():
        found = values(plan, x)
    for step, cost in zip(plan.steps, plan.costs(tuple(x.shape)), strict=True):
        counted = (cost.bytes_read, cost.bytes_written, cost.launches)
        assert counted == traffic(step, inputs_of(step, found)), step.name
        assert cost.weight_bytes == sum(t.untyped_storage().nbytes() for t in step.tensors.values()), step.name


def test_every_value_is_dropped_after_its_last_reader() -> None:
    plan = calibrated_features().plan()
    last_use = plan.last_use()
    assert set(last_use) == {INPUT, *(step.name for step in plan.steps)} - set(plan.outputs)
    for name, index in last_use.items():
        assert name in plan.steps[index].inputs.values()
        assert not any(name in step.inputs.values() for step in plan.steps[index + 1 :])


def test_the_dict_is_json_and_its_totals_are_sums() -> None:
    plan = calibrated_large().plan()
    data = plan.to_dict((2, 3, 64, 64))
    assert json.loads(json.dumps(data))["steps"][0] == {
        "op": "stem_conv",
        "name": "features.0",
        "shapes": {"inputs": [[2, 3, 64, 64]], "output": [2, 16, 32, 32]},
        "bytes_read": 4 * 2 * (3 * 64**2 + 16 * 32**2),
        "bytes_written": 4 * 2 * 2 * 16 * 32**2,
        "launches": 2,
        "weight_bytes": 4 * (432 + 16),
        "partial_bytes": 0,
        "macs": 2 * 432 * 32**2,
    }
    assert (data["backend"], data["input"]) == ("torch", [2, 3, 64, 64])
    assert len(data["steps"]) == len(plan.steps)
    totals = data["totals"]
    assert totals.pop("peak_activation_bytes") == plan.peak_bytes((2, 3, 64, 64))
    assert totals.pop("partial_bytes") == 0
    for field, total in totals.items():
        assert total == sum(step[field] for step in data["steps"]) > 0


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        ({"groups": 8, "stride": 1}, r"features\.0 is neither a dense, a 1x1 nor a depthwise convolution"),
        ({"groups": 1, "dilation": (2, 2)}, r"features\.0 is neither a dense, a 1x1 nor a depthwise convolution"),
    ],
)
def test_a_convolution_that_no_op_covers_is_refused(edit: dict[str, Any], reason: str) -> None:
    layer = mbv3fast.small().eval().features[0]
    layer[0] = torch.nn.Conv2d(16, 16, 3, bias=False, **edit)
    with pytest.raises(UnsupportedError, match=reason):
        lower(
            Lowering("torch", torch.float32), FoldedNetwork(fold_features(torch.nn.Sequential(layer)), ()), taps=(-1,)
        )


def test_a_residual_around_no_1x1_convolution_is_refused() -> None:
    model = mbv3fast.large().eval()
    model.features[1].project[0] = torch.nn.Conv2d(16, 16, 3, padding=1, bias=False)
    with pytest.raises(UnsupportedError, match=r"features\.1\.block\.1 is no 1x1 convolution, but its block has"):
        model.plan()
