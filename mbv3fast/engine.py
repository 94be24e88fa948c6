"""Runs a Plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mbv3fast.cluster.run import ClusterNetwork
from mbv3fast.ops import OPS
from mbv3fast.ops.op import as_tuple
from mbv3fast.ops.target import Target, cuda_target, target_of
from mbv3fast.plan import INPUT, Plan, Step
from mbv3fast.preprocess import Preprocess, channels_first
from mbv3fast.torch_ops import TORCH_OPS

MEMORY = 512 * 2**20  # bytes of activations at once, by default; what a launch costs is lost in a batch of this size


class _Call(NamedTuple):
    """A step bound to its function, and the values that nothing reads after it."""

    function: Callable[..., Any]
    inputs: Mapping[str, str]
    arguments: dict[str, Any]
    outputs: tuple[str, ...]
    dead: list[str]


class Engine:
    """A plan bound to the functions that run it; safe to call from several threads."""

    def __init__(self, plan: Plan, preprocess: Preprocess, micro_batch: int | None = None) -> None:
        """preprocess: how bytes are normalised. micro_batch: the images run at once, None for what memory allows."""
        if micro_batch is not None and (type(micro_batch) is not int or micro_batch < 1):
            raise ValueError(f"micro_batch: got {micro_batch}, needs at least 1 image, or None")
        self.plan = plan
        self.preprocess = preprocess
        self._micro_batch = micro_batch
        self._image_bytes: dict[tuple[int, ...], int] = {}
        self._factors: dict[torch.device, dict[str, Tensor]] = {}
        self._network = ClusterNetwork(plan) if plan.in_one_launch else None
        self._calls = _calls(plan) if self._network is None else []

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The plan's outputs for x [N, C, H, W], of x's dtype; activations are freed after their last use.

        Our kernels' plans take bytes too, [N, C, H, W] or [N, H, W, C]; the outputs are then of the plan's dtype. They
        run large batches in parts, so that activations take no more than MEMORY or those of one image.
        """
        x = x.resolve_neg()  # a kernel reads what lies in memory
        if x.dtype == torch.uint8:
            x = channels_first(x, len(self.preprocess.mean))
        images = self.images_at_once(tuple(x.shape))
        if images < x.shape[0]:
            parts = [self._forward(part) for part in x.split(images)]
            return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))
        return self._forward(x)

    def lack(self, x: Tensor) -> str:
        """Why `x`, an input of `__call__`, can't be run; empty where it can."""
        if self._network is None:
            return ""
        height, width = channels_first(x, len(self.preprocess.mean)).shape[2:]
        return self._network.lack((height, width), x.device)

    def images_at_once(self, shape: tuple[int, ...]) -> int:
        """How many images of an input of `shape` are run together."""
        if self.plan.backend == "torch" or self.plan.in_one_launch or self.plan.puts_out_maps:
            return shape[0]
        most = self._micro_batch or max(1, MEMORY // self._bytes_of_one_image(shape[1:]))
        return min(most, shape[0])

    def _bytes_of_one_image(self, shape: tuple[int, ...]) -> int:
        if shape not in self._image_bytes:
            self._image_bytes[shape] = self.plan.peak_bytes((1, *shape))
        return self._image_bytes[shape]

    def _forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self._network is not None:
            factors = self._factors_on(x.device) if x.dtype == torch.uint8 else {}
            return (self._network(x, **factors),)
        if self.plan.backend == "torch":
            dtype = x.dtype
            values = self._run({INPUT: x.to(self.plan.dtype, memory_format=torch.channels_last)}, {})
        else:
            dtype = self.plan.dtype
            factors = self._factors_on(x.device) if x.dtype == torch.uint8 else {}
            values = self._run({INPUT: x}, {"target": target_for(self.plan, x.device)}, factors)
        # Detached, since under no_grad a view may not be written to later, where gradients are on.
        return tuple(values[name].to(dtype).detach() for name in self.plan.outputs)

    def _run(
        self, values: dict[str, Tensor], how: dict[str, Target], first: Mapping[str, Tensor] = MappingProxyType({})
    ) -> dict[str, Tensor]:
        """Every value that is left in the end; `first` are arguments that only the first step has."""
        for function, inputs, arguments, outputs, dead in self._calls:
            result = function(**{name: values[value] for name, value in inputs.items()}, **arguments, **how, **first)
            values |= zip(outputs, as_tuple(result), strict=True)
            first = {}
            for value in dead:
                del values[value]
        return values

    def _factors_on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._factors:  # graphs read the first ones, whichever thread made them
            made = dict(zip(("factor", "shift"), self.preprocess.factors(device), strict=True))
            self._factors.setdefault(device, made)
        return self._factors[device]


def _calls(plan: Plan) -> list[_Call]:
    dead: list[list[str]] = [[] for _ in plan.steps]
    for name, index in plan.last_use().items():
        dead[index].append(name)
    return [
        _Call(step_function(plan, step), step.inputs, {**step.tensors, **step.options}, step.outputs, gone)
        for step, gone in zip(plan.steps, dead, strict=True)
    ]


def target_for(plan: Plan, device: torch.device) -> Target:
    """What the launches of a plan of our kernels are for."""
    return cuda_target(device, plan.dtype, pdl=True) if plan.backend == "cuda" else target_of(device, pdl=True)


def step_function(plan: Plan, step: Step) -> Callable[..., Any]:
    """What computes a step of a plan; of our kernels' plans it takes a `target` too."""
    return TORCH_OPS[step.op] if plan.backend == "torch" else OPS[step.op].compute
