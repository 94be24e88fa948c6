"""A fused network as one module of its ops, for torch.export and torch.compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mbv3fast.ops import OPS
from mbv3fast.ops.op import as_tuple
from mbv3fast.plan import INPUT, Plan
from mbv3fast.preprocess import Preprocess, channels_first


class FusedProgram(nn.Module):
    """The steps of a plan of our kernels as calls of `torch.ops.mbv3fast.*`, the packed weights as buffers.

    Input as the model's it was made from, bytes included; output [N, classes], or a list of feature maps. It is a copy:
    what happens to the model later doesn't reach it. Where no kernel serves, the ops compute their references.
    """

    def __init__(self, plan: Plan, preprocess: Preprocess) -> None:
        super().__init__()
        self.plan = plan
        self.channels = len(preprocess.mean)
        for index, step in enumerate(plan.steps):
            for name, tensor in step.tensors.items():
                self.register_buffer(_buffer(index, name), tensor)
        factor, shift = preprocess.factors(plan.steps[0].tensors["bias"].device)
        self.register_buffer("factor", factor)
        self.register_buffer("shift", shift)

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        values: dict[str, Any] = {INPUT: x}
        extra: dict[str, Any] = {}
        if x.dtype == torch.uint8:
            values[INPUT] = channels_first(x, self.channels)
            extra = {"factor": self.factor, "shift": self.shift}
        for index, step in enumerate(self.plan.steps):
            given = {name: values[value] for name, value in step.inputs.items()} | extra
            given |= {name: getattr(self, _buffer(index, name)) for name in step.tensors}
            op = OPS[step.op]
            result = op(*[given.get(arg.name) for arg in op.spec.args], **step.options)
            values |= zip(step.outputs, as_tuple(result), strict=True)
            extra = {}
        outputs = [values[name] for name in self.plan.outputs]
        return outputs if self.plan.puts_out_maps else outputs[0]


def _buffer(index: int, name: str) -> str:
    return f"step_{index}_{name}"
