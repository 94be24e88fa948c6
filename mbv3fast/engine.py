"""Runs a Plan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mbv3fast.plan import INPUT, Plan
from mbv3fast.torch_ops import TORCH_OPS


class Engine:
    """A plan bound to the functions that run it; safe to call from several threads."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        last_use = plan.last_use()
        dropped: list[list[str]] = [[] for _ in plan.steps]
        for name, index in last_use.items():
            dropped[index].append(name)
        self._calls: list[tuple[Callable[..., Tensor], tuple[str, ...], dict[str, Any], str, list[str]]] = [
            (TORCH_OPS[step.op], step.inputs, {**step.tensors, **step.options}, step.name, dead)
            for step, dead in zip(plan.steps, dropped, strict=True)
        ]

    def __call__(self, x: Tensor) -> tuple[Tensor, ...]:
        """The plan's outputs for x [N, C, H, W], of x's dtype; activations are freed after their last use."""
        values = {INPUT: x.to(self.plan.dtype, memory_format=torch.channels_last)}
        for op, inputs, arguments, name, dead in self._calls:
            values[name] = op(*[values[source] for source in inputs], **arguments)
            for value in dead:
                del values[value]
        # Detached, since under no_grad a view may not be written to later, where gradients are on.
        return tuple(values[name].to(x.dtype).detach() for name in self.plan.outputs)
