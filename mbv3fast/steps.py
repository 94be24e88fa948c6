"""The steps of a plan one by one, on random tensors that are in place: what it takes to time them apart."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mbv3fast import reference
from mbv3fast.engine import step_function, target_for
from mbv3fast.ops.op import as_tuple, empty_input
from mbv3fast.plan import SPECS, Plan, Shape, Step
from mbv3fast.timing import Run

_OPEN = 99.0  # a bias whose scale is 1; by others values would vanish, call by call, and tiny ones take longer


def step_inputs(plan: Plan, shape: Shape) -> list[tuple[Step, dict[str, Shape]]]:
    """Each step with the shapes of what it takes from others, for an input of `shape` [N, C, H, W]."""
    shapes = plan.shapes(shape)
    return [(step, step.input_shapes(shapes)) for step in plan.steps]


def step_arguments(step: Step, inputs: Mapping[str, Shape], dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Random tensors for a step, and its options."""
    spec = SPECS[step.op]
    given = {name: empty_input(spec, name, shape, dtype, device).normal_() for name, shape in inputs.items()}
    return {**step.options, **given, **with_random_weights(step, device).tensors}


def with_random_weights(step: Step, device: torch.device, generator: torch.Generator | None = None) -> Step:
    """A step on `device` with random tensors, packed as its own are, of a size that keeps sums about 1."""
    tensors = {}
    for name, tensor in step.tensors.items():
        packed = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
        tensors[name] = packed.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
    return replace(step, tensors=tensors)


def repeatable(backend: str, step: Step, given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that calls leave as they are: PyTorch's squeeze-excite works in place, and gets a scale of 1."""
    if backend != "torch" or step.op != "squeeze_excite":
        return dict(given)
    return {**given, "fc2_bias": torch.full_like(given["fc2_bias"], _OPEN)}


def step_run(plan: Plan, step: Step, given: Mapping[str, Any], device: torch.device) -> Run:
    """A call of what computes the step of the plan."""
    how = {} if plan.backend == "torch" else {"target": target_for(plan, device)}
    return functools.partial(step_function(plan, step), **given, **how)


def step_reference(step: Step, given: Mapping[str, Any], dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """What the step must compute of `given`, and of its own tensors that aren't given; in `dtype` if there is one."""
    given = {**step.tensors, **step.options, **given}
    if dtype is not None:
        given = {name: value.to(dtype) if isinstance(value, Tensor) else value for name, value in given.items()}
    return as_tuple(getattr(reference, f"{step.op}_ref")(**given))
