"""Cases smaller than a network: a call of one op, a step of a plan, both on random tensors."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mbv3fast
from benchmarks.contest.cases import Right
from benchmarks.machine import DEVICE
from mbv3fast import reference
from mbv3fast.ceilings import chip_of
from mbv3fast.cli.options import DTYPES
from mbv3fast.cost import PlanCost, call_floor, plan_cost
from mbv3fast.ops import OPS
from mbv3fast.plan import Plan, Shape, Step
from mbv3fast.steps import repeatable, step_arguments, step_inputs, step_reference, step_run
from mbv3fast.timing import Run
from mbv3fast.torch_state import tf32_allowed

AT_HAND = torch.device(DEVICE)


class _Alone:
    """A case that shares nothing."""

    def share(self, folder: Path) -> None:
        pass

    def adopt(self, folder: Path) -> None:
        pass


@dataclass(frozen=True)
class OpCase(_Alone):
    """A call of a public op on random tensors: the sizes of the symbols in its Spec, its options, its extra inputs."""

    op: str
    dtype: str
    sizes: tuple[tuple[str, int], ...]
    options: tuple[tuple[str, Any], ...]
    extras: tuple[str, ...] = ()

    @property
    def batch(self) -> int:
        return dict(self.sizes)["N"]

    def __str__(self) -> str:
        sizes = dict(self.sizes)
        names = {"C": "c", "M": "m", "S": "s", "H": "h", "k": "k"}
        parts = [f"{short}{sizes[symbol]}" for symbol, short in names.items() if symbol in sizes]
        options = dict(self.options)
        parts += ["stride2"] * (options.get("stride") == 2) + list(self.extras)
        parts += [options["activation"]] * bool(options.get("activation"))
        return "-".join((self.op, self.dtype, str(self.batch), *parts))

    @classmethod
    def of(cls, step: Step, inputs: dict[str, tuple[int, ...]], dtype: str) -> OpCase:
        """A step's call; `inputs`: the shapes of what it takes from other steps."""
        sizes = {symbol: size for symbol, size in step.sizes(inputs).items() if symbol.isalpha()}
        spec, given = OPS[step.op].spec, {**inputs, **step.tensors}
        extras = tuple(arg.name for arg in spec.args if arg.optional and arg.name in given)
        return cls(step.op, dtype, tuple(sorted(sizes.items())), tuple(sorted(step.options.items())), extras)

    def tensors(self, device: torch.device) -> dict[str, Tensor]:
        """By the names of the op's arguments, all of the case's dtype; images in channels_last memory."""
        sizes, generator = dict(self.sizes), torch.Generator().manual_seed(0)
        tensors = {}
        for arg in OPS[self.op].spec.args:
            if arg.optional and arg.name not in self.extras:
                continue
            shape = [int(symbol) if symbol.isdigit() else sizes[symbol] for symbol in arg.shape.split()]
            fan_in = torch.Size(shape[1:]).numel() if arg.name.endswith("weight") else 1
            tensor = (torch.randn(shape, generator=generator) / fan_in**0.5).to(device, DTYPES[self.dtype])
            image = arg.shape.startswith("N") and len(shape) == 4
            tensors[arg.name] = tensor.contiguous(memory_format=torch.channels_last) if image else tensor
        return tensors

    def refer(self, tensors: dict[str, Tensor]) -> Tensor:
        """By plain PyTorch."""
        result: Tensor = getattr(reference, f"{self.op}_ref")(**tensors, **dict(self.options))
        return result

    def right(self, device: torch.device) -> Right:
        tensors = self.tensors(device)
        with torch.inference_mode():
            plain = self.refer(tensors)
            truth = self.refer({name: tensor.double() for name, tensor in tensors.items()})
        return Right(truth, plain)

    def facts(self) -> dict[str, Any]:
        sizes, options, moved = dict(self.sizes), dict(self.options), self._bytes()
        shape = "x".join(str(sizes[symbol]) for symbol in ("N", "C", "H", "W") if symbol in sizes)
        kernel, stride = sizes.get("k"), options.get("stride")
        words = [shape, *([f"{kernel}x{kernel} stride {stride}"] if kernel else [])]
        words += [f"{word} {sizes[symbol]}" for symbol, word in (("S", "squeeze"), ("M", "to")) if symbol in sizes]
        words += [*self.extras, *([options["activation"]] if options.get("activation") else [])]
        floors = call_floor(self.op, sizes, *moved, DTYPES[self.dtype], chip_of(AT_HAND)[0], tf32=tf32_allowed())
        counted = {"macs": OPS[self.op].spec.macs(sizes), "bytes": sum(moved), "floors": floors}
        return {"op": self.op, "shape": ", ".join(words), **counted}

    def _bytes(self) -> tuple[int, int]:
        """Of the inputs read once, weights among them, and of the output written once."""
        spec, sizes = OPS[self.op].spec, dict(self.sizes)
        shapes = [arg.shape.split() for arg in spec.args if not arg.optional or arg.name in self.extras]
        read = sum(torch.Size(int(s) if s.isdigit() else sizes[s] for s in shape).numel() for shape in shapes)
        written = sum(torch.Size(shape).numel() for shape in spec.output_shapes(sizes))
        size = DTYPES[self.dtype].itemsize
        return read * size, written * size


@dataclass(frozen=True)
class StepCase(_Alone):
    """A step of the plan that a backend runs, on random tensors."""

    variant: str
    dtype: str
    batch: int
    size: int
    backend: str
    index: int

    def _step(self) -> tuple[Step, dict[str, Shape]]:
        return _planned(self.variant, self.dtype, self.backend, self.batch, self.size)[self.index]

    def __str__(self) -> str:
        name = self._step()[0].name.replace(".", "_")
        return f"{self.variant}-{self.dtype}-{self.batch}-{self.size}-{self.index:02}-{name}"

    def tensors(self, device: torch.device) -> dict[str, Any]:
        """By the names of the op's arguments, with its options."""
        step, inputs = self._step()
        torch.manual_seed(0)
        given = step_arguments(step, inputs, DTYPES[self.dtype], device)
        return repeatable(self.backend, step, given)

    def run(self, device: torch.device) -> Run:
        """A call of what serves the step."""
        plan = meta_plan(self.variant, self.dtype, self.backend)
        return step_run(plan, self._step()[0], self.tensors(device), device)

    def right(self, device: torch.device) -> Right:
        step, given = self._step()[0], self.tensors(device)
        with torch.inference_mode():
            plain, truth = (step_reference(step, given, dtype)[0] for dtype in (None, torch.float64))
        return Right(truth, plain)

    def facts(self) -> dict[str, Any]:
        step, inputs = self._step()
        cost = _plan_cost(self.variant, self.dtype, self.backend, self.batch, self.size).steps[self.index]
        network = {"variant": self.variant, "size": self.size, "op": step.op, "step": step.name, "index": self.index}
        counted = {"bytes": cost.compulsory, "macs": cost.macs, "launches": cost.launches, "floors": cost.floors}
        return {**network, "shape": "x".join(map(str, inputs["x"])), **counted}


def op_cases(dtype: str, batches: tuple[int, ...], size: int = 224) -> Iterator[OpCase]:
    """Every distinct call of the depthwise, pointwise and squeeze-excite ops that Large or Small need."""
    found: dict[OpCase, None] = {}
    for batch in batches:
        for backend in ("torch", "triton"):
            for variant in ("large", "small"):
                for step, inputs in _planned(variant, dtype, backend, batch, size):
                    joined = step.op in ("depthwise_project", "depthwise_excite_project")
                    single = step.op in ("depthwise_conv", "squeeze_excite", "pointwise_conv")
                    if joined or (single and backend == "torch"):
                        found[OpCase.of(step, inputs, dtype)] = None
    yield from sorted(found, key=lambda case: (batches.index(case.batch), case.op))


@functools.cache
def meta_plan(variant: str, dtype: str, backend: str) -> Plan:
    """The plan of torchvision's network for a backend, without data."""
    with torch.device("meta"):
        model = (mbv3fast.large if variant == "large" else mbv3fast.small)(source="torchvision", backend=backend)
        return model.to(DTYPES[dtype]).eval().plan()


@functools.cache
def _planned(variant: str, dtype: str, backend: str, batch: int, size: int) -> list[tuple[Step, dict[str, Shape]]]:
    """Its steps, with the shapes of what each takes from others."""
    return step_inputs(meta_plan(variant, dtype, backend), (batch, 3, size, size))


@functools.cache
def _plan_cost(variant: str, dtype: str, backend: str, batch: int, size: int) -> PlanCost:
    plan, shape = meta_plan(variant, dtype, backend), (batch, 3, size, size)
    return plan_cost(plan, shape, chip_of(AT_HAND)[0], tf32=tf32_allowed())
