"""From the folded network to a Plan: which ops run, in what order, on which packed tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mbv3fast.fold import FoldedBlock, FoldedConv, FoldedLinear, FoldedNetwork, FoldedSqueezeExcite, UnsupportedError
from mbv3fast.plan import INPUT, Plan, Step


def lower_torch(network: FoldedNetwork, dtype: torch.dtype, taps: Sequence[int] | None = None) -> Plan:
    """The plan that PyTorch's own ops run: one step a convolution, weights packed channels_last in `dtype`.

    taps: indices of `features` layers whose outputs are the network's, in place of the pooled head.
    Raises UnsupportedError for a convolution that no op covers.
    """
    steps: list[Step] = []
    value = INPUT
    layer_outputs: list[str] = []
    for layer in network.layers:
        steps += _block(layer, value, dtype) if isinstance(layer, FoldedBlock) else [_conv(layer, value, dtype)]
        value = steps[-1].name
        layer_outputs.append(value)
    if taps is not None:
        return Plan("torch", dtype, tuple(steps), tuple(layer_outputs[index] for index in taps))
    steps.append(Step("global_mean", "avgpool", (value,), {}))
    for linear in network.head:
        steps.append(_linear(linear, steps[-1].name, dtype))
    return Plan("torch", dtype, tuple(steps), (steps[-1].name,))


def _block(block: FoldedBlock, source: str, dtype: torch.dtype) -> list[Step]:
    steps: list[Step] = []
    parts = (block.expand, block.depthwise, block.squeeze_excite, block.project)
    for part in (part for part in parts if part is not None):
        value = steps[-1].name if steps else source
        if isinstance(part, FoldedSqueezeExcite):
            steps.append(_squeeze_excite(part, value, dtype))
        else:
            steps.append(_conv(part, value, dtype, residual=source if _adds(block, part) else None))
    return steps


def _adds(block: FoldedBlock, part: FoldedConv) -> bool:
    return block.has_residual and part is block.project


def _conv(conv: FoldedConv, source: str, dtype: torch.dtype, residual: str | None = None) -> Step:
    tensors = {"weight": _pack(conv.weight, dtype), "bias": conv.bias.to(dtype)}
    options: dict[str, Any] = {"activation": conv.activation}
    spread: dict[str, Any] = {"stride": conv.stride, "padding": conv.padding}
    pointwise = conv.weight.shape[2:] == (1, 1) and conv.stride == 1 and conv.padding in ("same", (0, 0, 0, 0))
    if pointwise and conv.groups == 1:
        inputs = (source,) if residual is None else (source, residual)
        return Step("pointwise_conv", conv.name, inputs, tensors, options)
    if residual is not None:
        raise UnsupportedError(f"{conv.name} is no 1x1 convolution, but its block has a residual")
    if conv.groups == conv.weight.shape[0] and conv.weight.shape[1] == 1:
        return Step("depthwise_conv", conv.name, (source,), tensors, {**options, **spread, "dilation": conv.dilation})
    if conv.groups == 1 and conv.dilation == 1:
        return Step("stem_conv", conv.name, (source,), tensors, {**options, **spread})
    raise UnsupportedError(f"{conv.name} is neither a dense, a 1x1 nor a depthwise convolution")


def _squeeze_excite(part: FoldedSqueezeExcite, source: str, dtype: torch.dtype) -> Step:
    names = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
    tensors = {name: getattr(part, name).to(dtype).contiguous() for name in names}
    return Step("squeeze_excite", part.name, (source,), tensors, {"activation": part.activation})


def _linear(linear: FoldedLinear, source: str, dtype: torch.dtype) -> Step:
    tensors = {"weight": linear.weight.to(dtype).contiguous()}
    if linear.bias is not None:
        tensors["bias"] = linear.bias.to(dtype)
    return Step("linear", linear.name, (source,), tensors, {"activation": linear.activation})


def _pack(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype).contiguous(memory_format=torch.channels_last)
