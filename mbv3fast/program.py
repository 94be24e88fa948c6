"""A plan as one module, for torch.export and torch.compile."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from mbv3fast.ops import OPS
from mbv3fast.ops.op import as_tuple
from mbv3fast.plan import GLOBAL_MEAN, INPUT, Plan, Step
from mbv3fast.preprocess import Preprocess, channels_first
from mbv3fast.reference import (
    depthwise_conv_ref,
    global_mean_ref,
    linear_ref,
    pointwise_conv_ref,
    squeeze_excite_ref,
    stem_conv_ref,
)

_REFERENCES: dict[str, Callable[..., Tensor]] = {  # of the steps of PyTorch's plans
    "stem_conv": stem_conv_ref,
    "pointwise_conv": pointwise_conv_ref,
    "depthwise_conv": depthwise_conv_ref,
    "squeeze_excite": squeeze_excite_ref,
    GLOBAL_MEAN.name: global_mean_ref,
    "linear": linear_ref,
}


class FusedProgram(nn.Module):
    """The steps of a plan, the packed weights as buffers: calls of `torch.ops.mbv3fast.*`, or for a plan of backend
    "torch" the references, which are PyTorch's own operators.

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
        call = self._by_torch if self.plan.backend == "torch" else self._by_op
        for index, step in enumerate(self.plan.steps):
            given = {name: values[value] for name, value in step.inputs.items()} | extra
            given |= {name: getattr(self, _buffer(index, name)) for name in step.tensors}
            values |= zip(step.outputs, as_tuple(call(step, given)), strict=True)
            extra = {}
        outputs = [values[name] for name in self.plan.outputs]
        return outputs if self.plan.puts_out_maps else outputs[0]

    def _by_op(self, step: Step, given: dict[str, Any]) -> Any:
        op = OPS[step.op]
        return op(*[given.get(arg.name) for arg in op.spec.args], **step.options)

    def _by_torch(self, step: Step, given: dict[str, Any]) -> Any:
        return _REFERENCES[step.op](**given, **step.options)


def _buffer(index: int, name: str) -> str:
    return f"step_{index}_{name}"
