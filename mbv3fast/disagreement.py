"""Whether kernels compute what their references do, on a GPU that nobody has tried them on."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mbv3fast.agreement import difference
from mbv3fast.engine import Engine, step_function, target_for
from mbv3fast.ops import OPS
from mbv3fast.ops.op import as_tuple
from mbv3fast.plan import INPUT, Plan
from mbv3fast.preprocess import Preprocess
from mbv3fast.steps import step_reference, with_random_weights

_MOST_IMAGES = 7  # that differ, since float64 takes time and memory; no tile's number, so that none is another's copy


def disagreement(plan: Plan, shape: tuple[int, ...], device: torch.device) -> str:
    """The first step whose kernel errs more than it may, or the whole, and by how much; empty where all agree.

    Launched as the engine does, for all images of `shape` at once; on random weights, since the verdict is on kernels.
    Of plan `network`, whose steps are no launches, the whole alone.
    """
    generator = torch.Generator(device).manual_seed(0)
    plan = replace(plan, steps=tuple(with_random_weights(step, device, generator) for step in plan.steps))
    shapes = plan.shapes((min(shape[0], _MOST_IMAGES), *shape[1:]))

    def random(value: str, dtype: torch.dtype) -> Tensor:
        return torch.randn(shapes[value], generator=generator, device=device).to(dtype)

    for step in () if plan.in_one_launch else plan.steps:
        spec, target = OPS[step.op].spec, target_for(plan, device)
        few = {name: random(value, spec.dtype_of(name, plan.dtype)) for name, value in step.inputs.items()}
        many = {name: _repeated(tensor, shape[0]) for name, tensor in few.items()}
        run = functools.partial(step_function(plan, step), **many, **step.tensors, **step.options, target=target)
        plainly = functools.partial(step_reference, step, many)
        reason = _difference(run, plainly, functools.partial(step_reference, step, few, torch.float64))
        if reason:
            return f"{step.op} of {step.name} {reason}"
    x = random(INPUT, plan.dtype)
    images = _repeated(x, shape[0])
    engine = Engine(plan, Preprocess.default(shape[1]), micro_batch=shape[0])
    truly = functools.partial(_chain, plan, x, torch.float64)
    reason = _difference(lambda: engine(images), lambda: _chain(plan, images), truly)
    return f"the network {reason}" if reason else ""


def _repeated(few: Tensor, images: int) -> Tensor:
    return few.repeat(-(-images // len(few)), *[1] * (few.dim() - 1))[:images]


def _chain(plan: Plan, x: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, ...]:
    """The plan's outputs by the references of its steps, in `dtype` where one is given."""
    values = {INPUT: x}
    for step in plan.steps:
        inputs = {name: values[value] for name, value in step.inputs.items()}
        values |= zip(step.outputs, step_reference(step, inputs, dtype), strict=True)
    return tuple(values[name] for name in plan.outputs)


_Run = Callable[[], Any]


def _difference(run: _Run, plainly: _Run, truly: _Run) -> str:
    """By how much the outputs of `run` err more than PyTorch's for the same images, which repeat those of `truly`."""
    try:
        results = as_tuple(run())
    except Exception as failure:  # whatever a compiler or a launcher may say on a GPU that nobody has tried
        return f"fails: {failure}"
    for result, plain, truth in zip(results, plainly(), truly(), strict=True):
        found = difference(result, plain, truth)
        if not found.agrees:
            return f"errs by {found}"
    return ""
