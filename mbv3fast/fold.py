"""Batch norm folded into the convolutions, read from the live modules.

conv then BN is w' = w * gamma / sqrt(var + eps), b' = beta + (b - mean) * gamma / sqrt(var + eps)
(Jacob et al. 2018, section 3.2). Whatever a user did to the model counts: what is folded is what stands
there now, and what isn't understood raises `UnsupportedError` with the reason, so that PyTorch runs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mbv3fast.layers import Conv2dSame, ConvBNAct, InvertedResidual, Padding, SqueezeExcite
from mbv3fast.tables import Activation
from mbv3fast.torch_state import has_hooks


class UnsupportedError(Exception):
    """Something that only PyTorch itself runs right; the message names the module and why."""


@dataclass(frozen=True)
class FoldedConv:
    """A convolution with its batch norm inside. weight [C', C / groups, k, k], bias [C'], float32 or float64."""

    name: str
    weight: Tensor
    bias: Tensor
    activation: Activation | None
    stride: int
    padding: Padding | Literal["same"]
    dilation: int
    groups: int


@dataclass(frozen=True)
class FoldedSqueezeExcite:
    """fc1_weight [S, C], fc2_weight [C, S]."""

    name: str
    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor
    activation: Activation


@dataclass(frozen=True)
class FoldedBlock:
    """An inverted residual."""

    name: str
    expand: FoldedConv | None
    depthwise: FoldedConv
    squeeze_excite: FoldedSqueezeExcite | None
    project: FoldedConv
    has_residual: bool


@dataclass(frozen=True)
class FoldedLinear:
    """A classifier layer. weight [C', C]."""

    name: str
    weight: Tensor
    bias: Tensor | None
    activation: Activation | None


@dataclass(frozen=True)
class FoldedNetwork:
    """`layers` in the order of `features`; `head` is empty where the classifier is left to PyTorch."""

    layers: tuple[FoldedConv | FoldedBlock, ...]
    head: tuple[FoldedLinear, ...]


def fold_features(features: nn.Module) -> tuple[FoldedConv | FoldedBlock, ...]:
    """Fold `features` of a model in eval mode. Raises UnsupportedError."""
    _exactly(features, "features", nn.Sequential)
    return tuple(_fold_layer(layer, f"features.{name}") for name, layer in children(features))


def fold_pool(pool: nn.Module, name: str = "avgpool") -> None:
    """Raises UnsupportedError unless `pool` is the plain global mean."""
    _exactly(pool, name, nn.AdaptiveAvgPool2d)
    if pool.output_size not in (1, (1, 1)):
        raise UnsupportedError(f"{name} makes {pool.output_size} outputs, needs 1")


def fold_head(classifier: nn.Module) -> tuple[FoldedLinear, ...]:
    """Fold a classifier of linear layers, activations and (in eval, idle) dropouts. Raises UnsupportedError."""
    _exactly(classifier, "classifier", nn.Sequential)
    layers: list[FoldedLinear] = []
    fresh = False  # whether the newest linear layer has no activation yet
    for name, module in children(classifier):
        where = f"classifier.{name}"
        if type(module) in (nn.Dropout, nn.Identity):
            _eval_mode(module, where)
        elif type(module) is nn.Linear:
            _no_hooks(module, where)
            bias = None if module.bias is None else _wide(module.bias)
            layers.append(FoldedLinear(where, _wide(module.weight), bias, None))
            fresh = True
        elif fresh:
            last = layers[-1]
            layers[-1] = FoldedLinear(last.name, last.weight, last.bias, _activation(module, where))
            fresh = False
        else:
            raise UnsupportedError(f"{where} is a {type(module).__name__} that follows no linear layer")
    if not layers:
        raise UnsupportedError("classifier has no linear layer")
    return tuple(layers)


def _fold_layer(layer: nn.Module, name: str) -> FoldedConv | FoldedBlock:
    return _fold_conv(layer, name) if type(layer) is ConvBNAct else _fold_block(layer, name)


def _fold_block(block: nn.Module, name: str) -> FoldedBlock:
    _exactly(block, name, InvertedResidual)
    assert isinstance(block, InvertedResidual)
    _exactly(block.block, f"{name}.block", nn.Sequential)
    count = 2 + block.has_expand + block.has_squeeze_excite
    if len(block.block) != count:
        raise UnsupportedError(f"{name}.block has {len(block.block)} parts, {count} were built")
    names = [f"{name}.block.{index}" for index in range(count)]
    depthwise = int(block.has_expand)
    squeeze_excite = block.squeeze_excite
    return FoldedBlock(
        name=name,
        expand=None if block.expand is None else _fold_conv(block.expand, names[0]),
        depthwise=_fold_conv(block.depthwise, names[depthwise]),
        squeeze_excite=None if squeeze_excite is None else _fold_squeeze_excite(squeeze_excite, names[depthwise + 1]),
        project=_fold_conv(block.project, names[-1]),
        has_residual=block.has_residual,
    )


def _fold_conv(module: nn.Module, name: str) -> FoldedConv:
    _exactly(module, name, ConvBNAct)
    assert isinstance(module, ConvBNAct)
    if len(module) not in (2, 3):
        raise UnsupportedError(f"{name} has {len(module)} parts, needs conv, batch norm and at most an activation")
    conv, norm = module[0], module[1]
    _exactly(conv, f"{name}.0", nn.Conv2d, Conv2dSame)
    _exactly(norm, f"{name}.1", nn.BatchNorm2d)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    _eval_mode(norm, f"{name}.1")
    if norm.running_mean is None or norm.running_var is None:
        raise UnsupportedError(f"{name}.1 keeps no running statistics")
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        raise UnsupportedError(f"{name}.0 pads with {conv.padding_mode}, {conv.padding}")
    if any(len({*sizes}) > 1 for sizes in (conv.kernel_size, conv.stride, conv.dilation)):
        raise UnsupportedError(f"{name}.0 has a kernel, strides or dilations that differ in height and width")
    scale = torch.rsqrt(_wide(norm.running_var) + norm.eps)
    scale = scale if norm.weight is None else scale * _wide(norm.weight)
    offset = -_wide(norm.running_mean) if conv.bias is None else _wide(conv.bias) - _wide(norm.running_mean)
    bias = offset * scale if norm.bias is None else _wide(norm.bias) + offset * scale
    top, left = conv.padding
    return FoldedConv(
        name=name,
        weight=_wide(conv.weight) * scale[:, None, None, None],
        bias=bias,
        activation=_activation(module[2], f"{name}.2") if len(module) == 3 else None,
        stride=conv.stride[0],
        padding="same" if type(conv) is Conv2dSame else (left, left, top, top),
        dilation=conv.dilation[0],
        groups=conv.groups,
    )


def _fold_squeeze_excite(module: nn.Module, name: str) -> FoldedSqueezeExcite:
    _exactly(module, name, SqueezeExcite)
    assert isinstance(module, SqueezeExcite)
    fold_pool(module.avgpool, f"{name}.avgpool")
    _exactly(module.scale_activation, f"{name}.scale_activation", nn.Hardsigmoid)
    tensors: dict[str, Tensor] = {}
    for part, conv in (("fc1", module.fc1), ("fc2", module.fc2)):
        _exactly(conv, f"{name}.{part}", nn.Conv2d)
        if conv.weight.shape[2:] != (1, 1) or conv.groups != 1 or conv.bias is None or conv.padding != (0, 0):
            raise UnsupportedError(f"{name}.{part} is no plain 1x1 convolution with bias")
        tensors |= {f"{part}_weight": _wide(conv.weight).flatten(1), f"{part}_bias": _wide(conv.bias)}
    return FoldedSqueezeExcite(name, activation=_activation(module.activation, f"{name}.activation"), **tensors)


def _activation(module: nn.Module, name: str) -> Activation:
    _exactly(module, name, nn.ReLU, nn.Hardswish)
    return "relu" if type(module) is nn.ReLU else "hardswish"


def common_dtype(module: nn.Module) -> torch.dtype:
    """The one dtype of all parameters. Raises UnsupportedError where there are several."""
    dtypes = {parameter.dtype for parameter in module.parameters()}
    if len(dtypes) != 1:
        raise UnsupportedError(f"parameters have several dtypes: {', '.join(sorted(map(str, dtypes)))}")
    return dtypes.pop()


def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, submodule) in order, a submodule that stands in two places twice, unlike `named_children`."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def _exactly(module: nn.Module, name: str, *kinds: type[nn.Module]) -> None:
    """Only these very classes: a subclass, a parametrization or a wrapper may compute anything."""
    if type(module) not in kinds:
        raise UnsupportedError(f"{name} is a {type(module).__name__}, needs {' or '.join(k.__name__ for k in kinds)}")
    _no_hooks(module, name)


def _no_hooks(module: nn.Module, name: str) -> None:
    if has_hooks(module):
        raise UnsupportedError(f"{name} has hooks")
    for attribute in module.__dict__:
        if callable(getattr(type(module), attribute, None)):
            raise UnsupportedError(f"{name}.{attribute} was replaced")
        if attribute in ("weight", "bias", "running_mean", "running_var"):
            raise UnsupportedError(f"{name}.{attribute} is neither a parameter nor a buffer")


def _eval_mode(module: nn.Module, name: str) -> None:
    _no_hooks(module, name)
    if module.training:
        raise UnsupportedError(f"{name} is in training mode")


def _wide(tensor: Tensor) -> Tensor:
    """Folding is computed in float32 at least."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))
