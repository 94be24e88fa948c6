"""From the folded network to a Plan: which ops run, in what order, on which packed tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mbv3fast.fold import FoldedBlock, FoldedConv, FoldedLinear, FoldedNetwork, FoldedSqueezeExcite, UnsupportedError
from mbv3fast.ops import pack_taps
from mbv3fast.plan import GLOBAL_MEAN, INPUT, Plan, Step

Tensors = dict[str, Tensor]
BlockSteps = Callable[[FoldedBlock, str, torch.dtype], list[Step]]
ConvStep = Callable[[FoldedConv, str, torch.dtype], Step]
HeadSteps = Callable[[FoldedConv, tuple[FoldedLinear, ...], str, torch.dtype], list[Step]]


class Lowering(NamedTuple):
    """For whom a network is lowered, "torch", "triton", "cuda" or "network", and the dtype of its packed weights.

    PyTorch's plan has one step a convolution, weights channels_last. The plan of our kernels joins depthwise and
    projection, and squeeze-excite between them; CUDA's are of whole blocks, of those that they cover, and a "network"
    is one launch of them all. The last convolution's mean is taken where it is computed, and biases are float32.
    """

    backend: str
    dtype: torch.dtype


def lower(lowering: Lowering, network: FoldedNetwork, taps: Sequence[int] | None = None) -> Plan:
    """The plan of a network; `taps` are indices of `features` layers whose outputs it puts out, in place of the head.

    Raises UnsupportedError for a convolution that no op covers.
    """
    backend, dtype = lowering
    block_steps, head_steps, conv_step = _BACKENDS[backend]
    steps: list[Step] = []
    ends = [INPUT]
    layers = network.layers if taps is not None else network.layers[:-1]
    for layer in layers:
        if isinstance(layer, FoldedBlock):
            steps += block_steps(layer, ends[-1], dtype)
        else:
            steps.append(conv_step(layer, ends[-1], dtype))
        ends.append(steps[-1].name)
    if taps is not None:
        return Plan(backend, dtype, tuple(steps), tuple(ends[1:][index] for index in taps))
    last = network.layers[-1]
    if not isinstance(last, FoldedConv):
        raise UnsupportedError(f"{last.name} is a block, needs a convolution before the mean")
    steps += head_steps(last, network.head, ends[-1], dtype)
    return Plan(backend, dtype, tuple(steps), (steps[-1].name,))


def _torch_block(block: FoldedBlock, source: str, dtype: torch.dtype) -> list[Step]:
    steps: list[Step] = []
    value = source
    for part in (block.expand, block.depthwise, block.squeeze_excite):
        if isinstance(part, FoldedConv):
            steps.append(_conv(part, value, _pack_torch(part, dtype)))
        elif part is not None:
            tensors = {name: tensor.to(dtype) for name, tensor in _fc_tensors(part).items()}
            steps.append(Step("squeeze_excite", (part.name,), {"x": value}, tensors, {"activation": part.activation}))
        value = steps[-1].name if steps else source
    return [*steps, _conv(block.project, value, _pack_torch(block.project, dtype), **_residual(block, source))]


def _torch_head(last: FoldedConv, head: tuple[FoldedLinear, ...], source: str, dtype: torch.dtype) -> list[Step]:
    steps = [_conv(last, source, _pack_torch(last, dtype))]
    steps.append(Step(GLOBAL_MEAN.name, ("avgpool",), {"x": last.name}, {}))
    for linear in head:
        bias = {} if linear.bias is None else {"bias": linear.bias.to(dtype)}
        tensors = {"weight": linear.weight.to(dtype).contiguous(), **bias}
        steps.append(_linear(linear, steps[-1].name, tensors))
    return steps


def _pack_torch(conv: FoldedConv, dtype: torch.dtype) -> Tensors:
    weight = conv.weight.to(dtype).contiguous(memory_format=torch.channels_last)
    return {"weight": weight, "bias": conv.bias.to(dtype)}


def _triton_block(block: FoldedBlock, source: str, dtype: torch.dtype) -> list[Step]:
    steps, value = [], source
    if block.expand is not None:
        steps.append(_conv(block.expand, source, _pack_triton(block.expand, dtype)))
        value = steps[-1].name
    depthwise, part, project = block.depthwise, block.squeeze_excite, block.project
    _expect(depthwise, "depthwise_conv")
    _expect(project, "pointwise_conv")
    tensors, options = _pack_triton(depthwise, dtype), _options(depthwise, "depthwise_conv")
    residual, projection = _residual(block, source), _pack_triton(project, dtype)
    gate = {} if part is None else _pack_squeeze_excite(part, dtype)
    if project.activation is None:
        if part is not None:
            options["squeeze_activation"] = part.activation
        op = "depthwise_project" if part is None else "depthwise_excite_project"
        tensors |= gate | {f"project_{name}": tensor for name, tensor in projection.items()}
        return [*steps, Step(op, (project.name,), {"x": value, **residual}, tensors, options)]
    steps.append(_conv(depthwise, value, tensors))
    if part is not None:
        steps.append(Step("squeeze_excite", (part.name,), {"x": depthwise.name}, gate, {"activation": part.activation}))
    return [*steps, _conv(project, steps[-1].name, projection, **residual)]


def _cuda_block(block: FoldedBlock, source: str, dtype: torch.dtype) -> list[Step]:
    """One step from its input to its end, which kernels of whole blocks compute, where there are such."""
    steps = _triton_block(block, source, dtype)
    if block.expand is None or not _is_whole(block):
        return steps
    expand, rest = steps
    tensors = {**{f"expand_{name}": tensor for name, tensor in expand.tensors.items()}, **rest.tensors}
    options = {"dilation": 1, "squeeze_activation": None, **rest.options}
    return [Step("inverted_residual", rest.outputs, {**rest.inputs, "x": source}, tensors, options)]


def _is_whole(block: FoldedBlock) -> bool:
    """Whether the op `inverted_residual` is what an expanding block computes."""
    expand = block.expand
    alike = expand is not None and expand.activation == block.depthwise.activation
    return alike and expand is not None and _op(expand) == "pointwise_conv" and block.project.activation is None


def _triton_head(last: FoldedConv, head: tuple[FoldedLinear, ...], source: str, dtype: torch.dtype) -> list[Step]:
    _expect(last, "pointwise_conv")
    first, *others = head
    tensors = _pack_triton(last, dtype)
    tensors |= {f"linear_{name}": tensor for name, tensor in _pack_linear(first, dtype).items()}
    options = {"activation": last.activation, "linear_activation": first.activation}
    steps = [Step("pointwise_mean_linear", (first.name,), {"x": source}, tensors, options)]
    for linear in others:
        steps.append(_linear(linear, steps[-1].name, _pack_linear(linear, dtype)))
    return steps


def _pack_triton(conv: FoldedConv, dtype: torch.dtype) -> Tensors:
    weight = _copy(conv.weight, dtype)
    return {"weight": weight if _op(conv) == "pointwise_conv" else pack_taps(weight), "bias": _copy(conv.bias)}


def _copy(tensor: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Contiguous, and never the model's own: a replay may read it when the model's is gone."""
    return tensor.to(dtype, copy=True, memory_format=torch.contiguous_format)


def _pack_squeeze_excite(part: FoldedSqueezeExcite, dtype: torch.dtype) -> Tensors:
    return {
        name: _copy(tensor, torch.float32 if name.endswith("bias") else dtype)
        for name, tensor in _fc_tensors(part).items()
    }


def _pack_linear(linear: FoldedLinear, dtype: torch.dtype) -> Tensors:
    bias = linear.weight.new_zeros(len(linear.weight)) if linear.bias is None else linear.bias
    return {"weight": _copy(linear.weight, dtype), "bias": _copy(bias)}


def _conv(conv: FoldedConv, source: str, tensors: Tensors, **others: str) -> Step:
    op = _op(conv)
    if "residual" in others:
        _expect(conv, "pointwise_conv", ", but its block has a residual")
    return Step(op, (conv.name,), {"x": source, **others}, tensors, _options(conv, op))


def _linear(linear: FoldedLinear, source: str, tensors: Tensors) -> Step:
    return Step("linear", (linear.name,), {"x": source}, tensors, {"activation": linear.activation})


def _options(conv: FoldedConv, op: str) -> dict[str, Any]:
    options: dict[str, Any] = {"activation": conv.activation}
    if op != "pointwise_conv":
        options |= {"stride": conv.stride, "padding": conv.padding}
    return options | ({"dilation": conv.dilation} if op == "depthwise_conv" else {})


def _op(conv: FoldedConv) -> str:
    """The op that computes it. Raises UnsupportedError where none does."""
    pointwise = conv.weight.shape[2:] == (1, 1) and conv.stride == 1 and conv.padding in ("same", (0, 0, 0, 0))
    if pointwise and conv.groups == 1:
        return "pointwise_conv"
    if conv.groups == conv.weight.shape[0] and conv.weight.shape[1] == 1:
        return "depthwise_conv"
    if conv.groups == 1 and conv.dilation == 1:
        return "stem_conv"
    raise UnsupportedError(f"{conv.name} is neither a dense, a 1x1 nor a depthwise convolution")


def _expect(conv: FoldedConv, op: str, why: str = "") -> None:
    if _op(conv) != op:
        kind = "1x1" if op == "pointwise_conv" else "depthwise"
        raise UnsupportedError(f"{conv.name} is no {kind} convolution{why}")


def _residual(block: FoldedBlock, source: str) -> dict[str, str]:
    return {"residual": source} if block.has_residual else {}


def _fc_tensors(part: FoldedSqueezeExcite) -> Tensors:
    return {name: getattr(part, name) for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")}


def _torch_conv(conv: FoldedConv, source: str, dtype: torch.dtype) -> Step:
    return _conv(conv, source, _pack_torch(conv, dtype))


def _triton_conv(conv: FoldedConv, source: str, dtype: torch.dtype) -> Step:
    return _conv(conv, source, _pack_triton(conv, dtype))


_BACKENDS: dict[str, tuple[BlockSteps, HeadSteps, ConvStep]] = {
    "torch": (_torch_block, _torch_head, _torch_conv),
    "triton": (_triton_block, _triton_head, _triton_conv),
    "cuda": (_cuda_block, _triton_head, _triton_conv),
    "network": (_cuda_block, _triton_head, _triton_conv),
}
