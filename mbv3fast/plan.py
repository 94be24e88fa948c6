"""The network as a list of fused steps: data only, with the bytes and operations of each counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor

from mbv3fast.backend import OF_CUDA
from mbv3fast.ops import OPS
from mbv3fast.ops.spec import Arg, Output, Sizes, Spec
from mbv3fast.ops.target import Target
from mbv3fast.traffic import Traffic, kernel_traffic, torch_traffic

INPUT = "x"
Shape = tuple[int, ...]
GLOBAL_MEAN = Spec("global_mean", (Arg("x", "N C H W"),), (Output("out", "N C"),), (), lambda _: 0)
SPECS = {GLOBAL_MEAN.name: GLOBAL_MEAN, **{name: op.spec for name, op in OPS.items()}}


@dataclass(frozen=True)
class Step:
    """One call of a fused op: `op(**inputs, **tensors, **options)`.

    `outputs` name its results after the modules that make them; `inputs` give each argument that is one of these, or
    "x", the network's input.
    """

    op: str
    outputs: tuple[str, ...]
    inputs: Mapping[str, str]
    tensors: Mapping[str, Tensor] = field(repr=False)
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.outputs[0]

    def input_shapes(self, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Shapes by argument, from those of a plan's values by name."""
        return {argument: shapes[name] for argument, name in self.inputs.items()}

    def sizes(self, shapes: Mapping[str, Shape]) -> Sizes:
        """The sizes of its op's symbols, for inputs of `shapes` by argument."""
        tensors = {name: tuple(tensor.shape) for name, tensor in self.tensors.items()}
        return SPECS[self.op].sizes({**tensors, **shapes}, self.options)


@dataclass(frozen=True)
class StepCost:
    """What a step does at one input size.

    bytes_read and bytes_written are of activations, as passed to its launches, weight_bytes of its tensors,
    partial_bytes of the float32 sums and scales that kernels pass on.
    """

    op: str
    name: str
    inputs: tuple[Shape, ...]
    output: Shape
    bytes_read: int
    bytes_written: int
    weight_bytes: int
    partial_bytes: int
    macs: int
    launches: int

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        fields = asdict(self)
        shapes = {"inputs": fields.pop("inputs"), "output": fields.pop("output")}
        return {"op": fields.pop("op"), "name": fields.pop("name"), "shapes": shapes, **fields}


@dataclass(frozen=True)
class Plan:
    """Steps in the order of execution, for one backend, in `dtype`; the network's outputs are those of `outputs`.

    Those of backend "network" are one launch together, which reads the input and the weights and writes the outputs:
    what lies between stays in shared memory.
    """

    backend: str
    dtype: torch.dtype
    steps: tuple[Step, ...]
    outputs: tuple[str, ...]

    @property
    def in_one_launch(self) -> bool:
        """Whether its steps are stages of a kernel, not launches."""
        return self.backend == "network"

    @property
    def puts_out_maps(self) -> bool:
        """Whether an output is a feature map, not a vector for each image."""
        vectors = {name for step in self.steps if step.op.endswith("linear") for name in step.outputs}
        return not vectors.issuperset(self.outputs)

    def last_use(self) -> dict[str, int]:
        """For each value the index of the last step that reads it; outputs are never dropped."""
        last = {name: index for index, step in enumerate(self.steps) for name in step.inputs.values()}
        return {name: index for name, index in last.items() if name not in self.outputs}

    def shapes(self, shape: Shape) -> dict[str, Shape]:
        """The shape of every value for an input of `shape` [N, C, H, W]."""
        shapes = {INPUT: shape}
        for step in self.steps:
            sizes = step.sizes(step.input_shapes(shapes))
            shapes |= dict(zip(step.outputs, SPECS[step.op].output_shapes(sizes), strict=True))
        return shapes

    @property
    def target(self) -> Target:
        """What launches are counted for where nobody says otherwise: the H100."""
        return Target(cuda=self.backend in OF_CUDA)

    def costs(self, shape: Shape, target: Target | None = None) -> list[StepCost]:
        """The cost of each step for an input of `shape` [N, C, H, W]; our launches are configured for the H100, without
        a table of timed configurations, unless a `target` says otherwise.
        """
        shapes = self.shapes(shape)
        return [self._cost(step, shapes, target) for step in self.steps]

    def _cost(self, step: Step, shapes: Mapping[str, Shape], target: Target | None) -> StepCost:
        inputs = step.input_shapes(shapes)
        traffic = self._traffic(step, inputs, shapes[step.name], target)
        return StepCost(
            op=step.op,
            name=step.name,
            inputs=tuple(inputs.values()),
            output=shapes[step.name],
            bytes_read=traffic.read,
            bytes_written=traffic.written,
            weight_bytes=sum(t.numel() * t.element_size() for t in step.tensors.values()),
            partial_bytes=traffic.partial,
            macs=SPECS[step.op].macs(step.sizes(inputs)),
            launches=traffic.launches,
        )

    def _traffic(self, step: Step, inputs: Mapping[str, Shape], output: Shape, target: Target | None = None) -> Traffic:
        if self.backend == "torch":
            return torch_traffic(step.op, inputs, step.tensors, step.options, output, self.dtype.itemsize)
        if self.in_one_launch:  # it is counted at its first step
            read = sum(prod(inputs[argument]) for argument, name in step.inputs.items() if name == INPUT)
            written = prod(output) if step.name in self.outputs else 0
            size = self.dtype.itemsize
            return Traffic(read * size, written * size, launches=int(step is self.steps[0]))
        run_for = target or self.target
        return kernel_traffic(OPS[step.op], inputs, step.tensors, step.options, self.dtype, run_for, step.inputs)

    def peak_bytes(self, shape: Shape) -> int:
        """The most memory that activations take at once, beside the caller's input and the weights."""
        shapes, last_use = self.shapes(shape), self.last_use()
        size = {name: prod(s) * self.dtype.itemsize for name, s in shapes.items()}
        if self.in_one_launch:
            return sum(size[name] for name in self.outputs)
        live: set[str] = set()
        peak = 0
        for index, step in enumerate(self.steps):
            live |= set(step.outputs)
            inputs = step.input_shapes(shapes)
            scratch = self._traffic(step, inputs, shapes[step.name]).scratch
            peak = max(peak, sum(size[name] for name in live) + scratch)
            live -= {name for name, last in last_use.items() if last == index}
        return peak

    def to_dict(self, shape: Shape) -> dict[str, Any]:
        """A JSON-able form: the plan's backend, totals, and each step's cost."""
        costs = [cost.to_dict() for cost in self.costs(shape)]
        counted = ("bytes_read", "bytes_written", "weight_bytes", "partial_bytes", "macs", "launches")
        totals = {name: sum(cost[name] for cost in costs) for name in counted}
        totals["peak_activation_bytes"] = self.peak_bytes(shape)
        return {"backend": self.backend, "input": list(shape), "totals": totals, "steps": costs}
