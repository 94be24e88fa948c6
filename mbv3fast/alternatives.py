"""What others would run in place of a plan: the passes of eager PyTorch, and of a compiler that fuses convolutions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from mbv3fast.plan import Plan, Shape, Step, StepCost
from mbv3fast.traffic import torch_traffic


class Passes(NamedTuple):
    """Launches, the bytes of activations that they read and write, and those of vectors: one number a channel."""

    launches: int
    moved: int
    vectors: int = 0


@dataclass(frozen=True)
class Alternative:
    """`parts`: the passes by what they are for."""

    name: str
    parts: Mapping[str, Passes]

    @property
    def total(self) -> Passes:
        return Passes(*map(sum, zip(*self.parts.values(), strict=True)))


def alternatives(plan: Plan, shape: Shape) -> tuple[Alternative, Alternative]:
    """For an input of `shape` [N, C, H, W] of the network that PyTorch's `plan` computes. Weights are not counted.

    "eager": convolution, batch norm, activation and residual each a pass, six passes a squeeze-excite, and the head's
    mean and layers with their activations. "fused convolutions": batch norm, activation and residual within their
    convolution's launch; a squeeze-excite in two, its mean and its two layers, the scale applied where the projection
    reads; the head's mean, and a launch a layer. Raises ValueError for a plan that isn't PyTorch's.
    """
    if plan.backend != "torch":
        raise ValueError(f"plan: got one for {plan.backend!r}, needs PyTorch's, with a step for each convolution")
    steps = list(zip(plan.steps, plan.costs(shape), strict=True))
    size = plan.dtype.itemsize
    return (
        Alternative("eager", _collect(part for step, cost in steps for part in _eager(step, cost, size))),
        Alternative("fused convolutions", _collect(part for step, cost in steps for part in _fused(step, cost, size))),
    )


def _collect(parts: Iterator[tuple[str, Passes]]) -> dict[str, Passes]:
    found: dict[str, Passes] = {}
    for name, passes in parts:
        found[name] = Passes(*map(sum, zip(found.get(name, Passes(0, 0)), passes, strict=True)))
    return found


def _eager(step: Step, cost: StepCost, size: int) -> Iterator[tuple[str, Passes]]:
    """Parts of a step, each a pass of its own."""
    source, result = prod(cost.inputs[0]) * size, prod(cost.output) * size
    if step.op.endswith("conv"):
        plain = {**step.options, "activation": None}
        moved = torch_traffic(step.op, {"x": cost.inputs[0]}, step.tensors, plain, cost.output, size)
        yield "convolutions", Passes(moved.launches, moved.read + moved.written)
        yield "batch norms", Passes(1, 2 * result)
        if step.options["activation"] is not None:
            yield "activations", Passes(1, 2 * result)
        if "residual" in step.inputs:
            yield "residuals", Passes(1, 3 * result)
    elif step.op == "squeeze_excite":
        maps = 2 * source + result
        yield "squeeze-excite", Passes(cost.launches, maps, cost.bytes_read + cost.bytes_written - maps)
    else:
        yield "head", Passes(cost.launches, cost.bytes_read + cost.bytes_written)


def _fused(step: Step, cost: StepCost, size: int) -> Iterator[tuple[str, Passes]]:
    """Parts of a step, those that take no pass of their own within their convolution's."""
    source, result = prod(cost.inputs[0]) * size, prod(cost.output) * size
    if step.op.endswith("conv"):
        yield "convolutions", Passes(1, source + result)
        if "residual" in step.inputs:
            yield "residuals", Passes(0, result)
    elif step.op == "squeeze_excite":
        images, channels = cost.inputs[0][:2]
        yield "squeeze-excite", Passes(2, source, 4 * images * channels * size)  # mean and scale, written and read
    else:
        yield "head", Passes(1, source + result)
