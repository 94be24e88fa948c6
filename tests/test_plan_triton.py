"""The plan of our kernels: its steps and bytes from the paper's table, and that each part of it matters.

Nothing here runs a kernel: steps are computed by the references of their ops. That kernels agree with these is for the
tests in the interpreter.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import mbv3fast
from mbv3fast.cli import main
from mbv3fast.fast import FusedMobileNetV3
from mbv3fast.fold import UnsupportedError
from mbv3fast.ops import OPS
from mbv3fast.plan import INPUT, Plan, Step
from mbv3fast.tables import HIDDEN, LAST_CONV, ROWS, STEM, Variant
from tests.networks import calibrated_large, digit_tiles, photographs, trained_small
from tests.numerics import Error, allowance, by_module, exact

pytest.importorskip("triton")
VARIANTS: tuple[Variant, ...] = ("large", "small")
CLASSES, SIZE, HALF = 1000, 224, 2
MARGIN = 10  # how many times the allowed error a mutation must exceed


def planned(variant: Variant) -> Plan:
    return getattr(mbv3fast, variant)(backend="triton").half().eval().plan()


def expected_ops(variant: Variant) -> list[str]:
    ops, width = ["stem_conv"], STEM
    for row in ROWS[variant]:
        ops += ["pointwise_conv"] * (row.expanded != width)
        ops.append("depthwise_excite_project" if row.squeeze_excite else "depthwise_project")
        width = row.out
    return [*ops, "pointwise_mean_linear", "linear"]


def expected_bytes(variant: Variant) -> int:
    """What must be read and written at batch 1: each tensor that a kernel leaves in memory, and each that one reads."""
    size, width = SIZE // 2, STEM
    elements = 3 * SIZE**2 + STEM * size**2
    for row in ROWS[variant]:
        outer, inner = size**2, (size // row.stride) ** 2
        if row.expanded != width:
            elements += (width + row.expanded) * outer
        elements += row.expanded * outer + row.out * inner
        if row.squeeze_excite:
            elements += 2 * row.expanded * inner
        if row.stride == 1 and width == row.out:
            elements += row.out * inner
        size, width = size // row.stride, row.out
    elements += width * size**2 + 2 * HIDDEN[variant] + CLASSES
    return HALF * elements + 4 * LAST_CONV[variant] * 2  # the last convolution's sums: two tiles at batch 1


@pytest.mark.parametrize(("variant", "launches", "megabytes"), [("large", 46, 15.5), ("small", 37, 5.5)])
def test_steps_launches_and_bytes(variant: Variant, launches: int, megabytes: float) -> None:
    plan = planned(variant)
    assert [step.op for step in plan.steps] == expected_ops(variant)
    assert (plan.backend, plan.dtype, plan.outputs) == ("triton", torch.float16, ("classifier.3",))
    totals = plan.to_dict((1, 3, SIZE, SIZE))["totals"]
    moved = totals["bytes_read"] + totals["bytes_written"]
    assert totals["launches"] == launches
    assert moved == expected_bytes(variant)
    assert moved <= megabytes * 1e6
    assert totals["partial_bytes"] <= 0.03 * moved


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("images", [1, 3])
def test_memory_is_bounded(variant: Variant, images: int) -> None:
    """Two neighbours live at once, the widest and what it is made of or made into, besides a step's own sums."""
    plan = planned(variant)
    shapes = plan.shapes((images, 3, SIZE, SIZE))
    widest = HALF * max(torch.Size(s).numel() for name, s in shapes.items() if name != INPUT)
    assert widest < plan.peak_bytes((images, 3, SIZE, SIZE)) <= 1.5 * widest
    assert plan.peak_bytes((images, 3, SIZE, SIZE)) <= images * plan.peak_bytes((1, 3, SIZE, SIZE))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_command_line_says_the_same(variant: Variant) -> None:
    arguments = ["plan", variant, "--backend", "triton", "--dtype", "float16", "--batch", "2", "--json"]
    said = json.loads(CliRunner().invoke(main, arguments, catch_exceptions=False).output)
    counted = planned(variant).to_dict((2, 3, SIZE, SIZE))
    assert json.loads(json.dumps(counted)).items() <= said.items()


def compute(plan: Plan, x: Tensor) -> Tensor:
    """The plan's output, each step by its reference."""
    values = {INPUT: x}
    for step in plan.steps:
        inputs = {name: values[value] for name, value in step.inputs.items()}
        results = OPS[step.op].reference(**inputs, **step.tensors, **step.options)
        values |= zip(step.outputs, results, strict=True)
    return values[plan.outputs[0]]


def subject(name: str) -> tuple[FusedMobileNetV3, Tensor]:
    model = copy.deepcopy(calibrated_large() if name == "large" else trained_small())
    model.backend = "triton"
    return model, photographs(2, 64) if name == "large" else digit_tiles()[:8]


def mutants(plan: Plan) -> Iterator[tuple[str, Plan]]:
    """Every plan that lacks one part: a scale, a residual, a bias, a tap of the halo, an activation."""

    def without(index: int, step: Step) -> Plan:
        return replace(plan, steps=(*plan.steps[:index], step, *plan.steps[index + 1 :]))

    for index, step in enumerate(plan.steps):
        if "residual" in step.inputs:
            rest = {name: value for name, value in step.inputs.items() if name != "residual"}
            yield f"residual of {step.name}", without(index, replace(step, inputs=rest))
        if "fc2_weight" in step.tensors:
            gate = {"fc2_weight": torch.zeros_like(step.tensors["fc2_weight"])}
            gate["fc2_bias"] = torch.full_like(step.tensors["fc2_bias"], 3)  # whose hardsigmoid is 1
            yield f"scale of {step.name}", without(index, replace(step, tensors={**step.tensors, **gate}))
        for name, tensor in step.tensors.items():
            if name.endswith("bias"):
                zeroed = {**step.tensors, name: torch.zeros_like(tensor)}
                yield f"{name} of {step.name}", without(index, replace(step, tensors=zeroed))
        weight = step.tensors["weight"]
        if weight.dim() == 4 and weight.shape[3] > 1:
            cut, row = weight.clone(), weight.shape[3] // 2 - 1  # above and left of the middle, inside any map
            cut[:, :, row, row] = 0
            yield f"tap of {step.name}", without(index, replace(step, tensors={**step.tensors, "weight": cut}))
        for option in set(step.options) & {"activation", "squeeze_activation", "linear_activation"}:
            if step.options[option] is not None:
                options = {**step.options, option: None}
                yield f"{option} of {step.name}", without(index, replace(step, options=options))


@pytest.mark.parametrize("name", VARIANTS)
def test_each_part_of_the_plan_matters(name: str) -> None:
    model, x = subject(name)
    with torch.inference_mode():
        plan, (plain,), (truth,) = model.plan(), by_module(model, x), exact(model, x)
        allowed = allowance(plain, truth)
        assert Error.of(compute(plan, x), truth).within(allowed)
        kinds, survivors = set(), []
        for mutation, mutant in mutants(plan):
            kinds.add(mutation.partition(" ")[0])
            if Error.of(compute(mutant, x), truth).within(allowed.times(MARGIN)):
                survivors.append(mutation)
    assert survivors == []
    assert {"scale", "residual", "bias", "fc1_bias", "fc2_bias", "project_bias", "linear_bias", "tap"} <= kinds


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (lambda m: m.features[4].project.__setitem__(0, conv(72, 40, 3)), "features.4.block.3 is no 1x1 convolution"),
        (lambda m: m.features[4].depthwise.__setitem__(0, conv(72, 72, 3)), "features.4.block.1 is no depthwise"),
        (lambda m: m.features[16].__setitem__(0, conv(160, 960, 3)), "features.16 is no 1x1 convolution"),
    ],
)
def test_what_no_kernel_covers_is_refused(edit: Any, reason: str) -> None:
    model = mbv3fast.large(backend="triton").eval()
    edit(model)
    with pytest.raises(UnsupportedError, match=reason):
        model.plan()


def conv(inputs: int, outputs: int, kernel: int) -> torch.nn.Conv2d:
    return torch.nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)


@pytest.mark.parametrize(
    ("images", "blocks"), [(1, {4, 5, 6}), (128, {4, 5, 6}), (10_000, set())], ids=["one", "many", "too many"]
)
def test_narrow_excites_are_computed_in_their_neighbour(images: int, blocks: set[int]) -> None:
    """Where each program's reads of fc2 cost less than a launch: few channels, or few programs."""
    costs = planned("large").costs((images, 3, SIZE, SIZE))
    two = {cost.name for cost in costs if cost.op == "depthwise_excite_project" and cost.launches == 2}
    assert two == {f"features.{block}.block.3" for block in blocks}


def test_wide_projections_take_two_kernels() -> None:
    """Where a program can't hold all outputs beside its tile."""
    with torch.device("meta"):
        wide = mbv3fast.small(width_mult=12, backend="triton").half().eval().plan()
    launches = {cost.name: cost.launches for cost in wide.costs((1, 3, 32, 32)) if cost.op == "depthwise_project"}
    assert set(launches.values()) == {2}
