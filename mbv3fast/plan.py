"""The network as a list of fused steps: data only, with the bytes and operations of each counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from mbv3fast.layers import Padding, same_padding

INPUT = "x"
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One call of a fused op: `op(*inputs, **tensors, **options)`.

    `inputs` name the steps whose outputs it reads, "x" being the network's input; `name` is the path of the
    module that it ends with.
    """

    op: str
    name: str
    inputs: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)

    def output_shape(self, shape: Shape) -> Shape:
        """The shape of its output for a first input of `shape` ([N, C, H, W], or [N, C] after the mean)."""
        batch = shape[0]
        if self.op == "squeeze_excite":
            return shape
        if self.op == "global_mean":
            return shape[:2]
        weight = self.tensors["weight"]
        if self.op == "linear":
            return (batch, weight.shape[0])
        return (batch, weight.shape[0], *self._spatial(shape[2:]))

    def _spatial(self, size: Shape) -> Shape:
        kernel = tuple(self.tensors["weight"].shape[2:])
        stride, dilation = self.options.get("stride", 1), self.options.get("dilation", 1)
        left, right, top, bottom = self.padding(size)
        padded = (size[0] + top + bottom, size[1] + left + right)
        return tuple((p - (k - 1) * dilation - 1) // stride + 1 for p, k in zip(padded, kernel, strict=True))

    def padding(self, size: Shape) -> Padding:
        """Its (left, right, top, bottom) zeros around an input of height and width `size`."""
        padding = self.options.get("padding", (0, 0, 0, 0))
        if padding != "same":
            return padding
        stride, dilation = self.options.get("stride", 1), self.options.get("dilation", 1)
        kernel = self.tensors["weight"].shape[2:]
        return same_padding(size[0], size[1], kernel, (stride, stride), (dilation, dilation))

    def macs(self, shape: Shape) -> int:
        """Multiply-adds of its convolutions and matrices for a first input of `shape`."""
        batch = shape[0]
        if self.op == "squeeze_excite":
            return batch * (self.tensors["fc1_weight"].numel() + self.tensors["fc2_weight"].numel())
        if self.op == "global_mean":
            return 0
        positions = prod(self.output_shape(shape)[2:])
        return batch * positions * self.tensors["weight"].numel()


@dataclass(frozen=True)
class StepCost:
    """What a step does at one input size. Bytes are of activations; `weight_bytes` of its tensors."""

    op: str
    name: str
    inputs: tuple[Shape, ...]
    output: Shape
    bytes_read: int
    bytes_written: int
    weight_bytes: int
    macs: int
    launches: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        fields = asdict(self)
        shapes = {"inputs": fields.pop("inputs"), "output": fields.pop("output")}
        return {"op": fields.pop("op"), "name": fields.pop("name"), "shapes": shapes, **fields}


@dataclass(frozen=True)
class Plan:
    """Steps in the order of execution, for one backend, in `dtype`; the network's outputs are those of `outputs`."""

    backend: str
    dtype: torch.dtype
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]

    def last_use(self) -> dict[str, int]:
        """For each value the index of the last step that reads it; outputs are never dropped."""
        last = {name: index for index, step in enumerate(self.steps) for name in step.inputs}
        return {name: index for name, index in last.items() if name not in self.outputs}

    def costs(self, shape: Shape) -> list[StepCost]:
        """The cost of each step for an input of `shape` [N, C, H, W]."""
        itemsize = self.dtype.itemsize
        shapes: dict[str, Shape] = {INPUT: shape}
        costs = []
        for step in self.steps:
            inputs = tuple(shapes[name] for name in step.inputs)
            shapes[step.name] = output = step.output_shape(inputs[0])
            reads, writes, launches = _passes(step, inputs, output)
            costs.append(
                StepCost(
                    op=step.op,
                    name=step.name,
                    inputs=inputs,
                    output=output,
                    bytes_read=reads * itemsize,
                    bytes_written=writes * itemsize,
                    weight_bytes=sum(t.numel() * t.element_size() for t in step.tensors.values()),
                    macs=step.macs(inputs[0]),
                    launches=launches,
                )
            )
        return costs

    def to_dict(self, shape: Shape) -> dict[str, Any]:
        """A JSON-able form: the plan's backend, totals, and each step's cost."""
        costs = [cost.to_dict() for cost in self.costs(shape)]
        counted = ("bytes_read", "bytes_written", "weight_bytes", "macs", "launches")
        totals = {name: sum(cost[name] for cost in costs) for name in counted}
        return {"backend": self.backend, "input": list(shape), "totals": totals, "steps": costs}


def _passes(step: Step, inputs: tuple[Shape, ...], output: Shape) -> tuple[int, int, int]:
    """Activation elements read and written, and kernels launched, by PyTorch's own ops for one step.

    PyTorch makes a pass of its own over the output for each activation and each residual.
    """
    source, result = prod(inputs[0]), prod(output)
    if step.op == "squeeze_excite":  # mean, fc1, activation, fc2, hardsigmoid, multiply
        channels, hidden = source // prod(inputs[0][2:]), step.tensors["fc1_weight"].shape[0] * inputs[0][0]
        vectors_read = channels + hidden + hidden + channels + channels
        vectors_written = channels + hidden + hidden + channels + channels
        return 2 * source + vectors_read, result + vectors_written, 6
    if step.op == "global_mean":
        return source, result, 1
    extra = int(step.options.get("activation") is not None)
    residual = len(inputs) - 1
    padded = _padded_copy(step, inputs[0])
    reads = (padded + source if padded else source) + (extra + 2 * residual) * result
    return reads, padded + (1 + extra + residual) * result, 1 + extra + residual + (padded > 0)


def _padded_copy(step: Step, shape: Shape) -> int:
    """Elements of the copy that PyTorch makes where padding differs from side to side, 0 where it doesn't."""
    if len(shape) != 4:
        return 0
    left, right, top, bottom = step.padding(shape[2:])
    if left == right and top == bottom:
        return 0
    return prod(shape[:2]) * (shape[2] + top + bottom) * (shape[3] + left + right)
