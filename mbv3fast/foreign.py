"""MobileNetV3s of torchvision and of timm as they stand, module by module. Imports neither.

Every module that takes part is looked at: one that isn't known, was replaced, or has hooks is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from mbv3fast.torch_state import has_hooks


class UnknownModuleError(ValueError):
    """A module that has no equivalent; the message names it."""


@dataclass(frozen=True)
class ForeignConv:
    """A convolution, its batch norm, and the activation behind it; `same`: TensorFlow's padding."""

    name: str
    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    activation: str | None
    same: bool


@dataclass(frozen=True)
class ForeignExcite:
    """Squeeze-excite's two 1x1 convolutions with biases."""

    name: str
    fc1: nn.Conv2d
    fc2: nn.Conv2d
    activation: str | None


@dataclass(frozen=True)
class ForeignBlock:
    """An inverted residual."""

    name: str
    expand: ForeignConv | None
    depthwise: ForeignConv
    squeeze_excite: ForeignExcite | None
    project: ForeignConv
    residual: bool


@dataclass(frozen=True)
class ForeignNetwork:
    """head: a linear layer or a 1x1 convolution of the means, with its activation; `classifier` follows it."""

    stem: ForeignConv
    blocks: tuple[ForeignBlock, ...]
    last_convs: tuple[ForeignConv, ...]
    head: nn.Linear | nn.Conv2d
    head_activation: str | None
    dropout: float
    classifier: nn.Module


def read_network(model: nn.Module) -> ForeignNetwork:
    """A model as it stands. Raises UnknownModuleError."""
    reader = _READERS.get(_class_of(model))
    if reader is None:
        known = " or ".join(f"{module}.{name}" for module, name in _READERS)
        raise UnknownModuleError(f"model is a {'.'.join(_class_of(model))}, needs {known}{_hint(model)}")
    for name, module in model.named_modules():
        _check_untouched(module, name or "model")
    return reader(model)


def _class_of(module: nn.Module) -> tuple[str, str]:
    return type(module).__module__, type(module).__qualname__


def _hint(model: nn.Module) -> str:
    """How to reach the model in what others wrap it in."""
    for attribute in ("_orig_mod", "module"):
        if isinstance(getattr(model, attribute, None), nn.Module):
            return f"; is it model.{attribute}?"
    return ""


def _check_untouched(module: nn.Module, name: str) -> None:
    if has_hooks(module):
        raise UnknownModuleError(f"{name} has hooks, which the fused network would not call")
    if hasattr(module, "parametrizations"):
        raise UnknownModuleError(
            f"{name} has parametrizations, which must be removed (leave_parametrized=True keeps values)"
        )
    for attribute in module.__dict__:
        if callable(getattr(type(module), attribute, None)):
            raise UnknownModuleError(f"{name}.{attribute} was replaced")


def _torchvision(model: Any) -> ForeignNetwork:
    features = _one(model, "features", "torch.nn.modules.container.Sequential")
    layers = [(f"features.{name}", layer) for name, layer in _children(features)]
    convs = [_named(_CONV_NORM, layer) for _, layer in layers]
    if len(layers) < 3 or not convs[0] or not convs[-1]:
        raise UnknownModuleError("features needs convolutions at its ends, and blocks between them")
    last = convs.index(True, 1)
    stem, *others = (
        _torchvision_conv(layer, name) for (name, layer), plain in zip(layers, convs, strict=True) if plain
    )
    blocks = [_torchvision_block(layer, name) for name, layer in layers[1:last]]
    _mean(model, "avgpool")
    head, activation, dropout, *rest = _sequence(model, "classifier", least=4)
    if not isinstance(head, nn.Linear):
        raise UnknownModuleError(f"classifier.0 is a {type(head).__name__}, needs Linear")
    rate = dropout.p if isinstance(dropout, nn.Dropout) else 0.0
    behind = rest[0] if len(rest) == 1 else nn.Sequential(*rest)
    if not isinstance(dropout, (nn.Dropout, nn.Identity)):
        behind = nn.Sequential(dropout, *rest)
    return ForeignNetwork(
        stem, tuple(blocks), tuple(others), head, _activation(activation, "classifier.1"), rate, behind
    )


def _torchvision_conv(module: Any, name: str) -> ForeignConv:
    _expect(module, name, _CONV_NORM)
    parts = list(module.children())
    if len(parts) not in (2, 3):
        raise UnknownModuleError(f"{name} has {len(parts)} parts, needs conv, batch norm and at most an activation")
    activation = _activation(parts[2], f"{name}.2") if len(parts) == 3 else None
    return _conv(parts[0], parts[1], f"{name}.0", f"{name}.1", activation)


def _torchvision_block(module: Any, name: str) -> ForeignBlock:
    _expect(module, name, "torchvision.models.mobilenetv3.InvertedResidual")
    parts = _children(module.block)
    excites = [_excite_of(part, f"{name}.block.{key}") for key, part in parts if _named(_TORCHVISION_EXCITE, part)]
    convs = [
        _torchvision_conv(part, f"{name}.block.{key}") for key, part in parts if not _named(_TORCHVISION_EXCITE, part)
    ]
    return _block(name, convs, excites, bool(module.use_res_connect))


def _excite_of(module: Any, name: str) -> ForeignExcite:
    _mean(module, "avgpool", name)
    _expect(module.scale_activation, f"{name}.scale_activation", _HARDSIGMOID)
    return _excite(name, module.fc1, module.fc2, module.activation)


def _timm(model: Any) -> ForeignNetwork:
    for name, wanted in {"norm_head": _IDENTITY, "flatten": "torch.nn.modules.flatten.Flatten"}.items():
        _one(model, name, wanted)
    pool = _one(model, "global_pool", "timm.layers.adaptive_avgmax_pool.SelectAdaptivePool2d")
    if pool.pool_type != "avg":
        raise UnknownModuleError(f"global_pool takes the {pool.pool_type}, needs the mean")
    stem = _timm_conv(model.conv_stem, model.bn1, "conv_stem", "bn1")
    blocks: list[ForeignBlock] = []
    lasts: list[ForeignConv] = []
    for stage, layers in _children(model.blocks):
        for position, layer in _children(layers):
            name = f"blocks.{stage}.{position}"
            if _named("timm.models._efficientnet_blocks.ConvBnAct", layer):
                lasts.append(_timm_last(layer, name))
            elif lasts:
                raise UnknownModuleError(f"{name} is a {type(layer).__name__} behind the last convolution")
            else:
                blocks.append(_timm_block(layer, name))
    if not lasts:
        raise UnknownModuleError("blocks end without a convolution")
    activation = _activation(model.act2, "act2")
    if activation is None or not isinstance(model.conv_head, nn.Conv2d):
        raise UnknownModuleError("conv_head, act2: need a 1x1 convolution and an activation")
    return ForeignNetwork(
        stem, tuple(blocks), tuple(lasts), model.conv_head, activation, float(model.drop_rate), model.classifier
    )


def _timm_last(layer: Any, name: str) -> ForeignConv:
    if layer.has_skip or not _named(_IDENTITY, layer.aa):
        raise UnknownModuleError(f"{name} has a residual or an anti-aliasing filter")
    return _timm_conv(layer.conv, layer.bn1, f"{name}.conv", f"{name}.bn1")


def _timm_block(layer: Any, name: str) -> ForeignBlock:
    shallow = _named("timm.models._efficientnet_blocks.DepthwiseSeparableConv", layer)
    if not shallow:
        _expect(layer, name, "timm.models._efficientnet_blocks.InvertedResidual")
    if not _named(_IDENTITY, layer.aa) or getattr(layer, "conv_s2d", None) is not None:
        raise UnknownModuleError(f"{name} has an anti-aliasing filter or a space-to-depth convolution")
    names = ("conv_dw", "conv_pw") if shallow else ("conv_pw", "conv_dw", "conv_pwl")
    convs = [
        _timm_conv(getattr(layer, part), getattr(layer, f"bn{number}"), f"{name}.{part}", f"{name}.bn{number}")
        for number, part in enumerate(names, 1)
    ]
    excites = [] if _named(_IDENTITY, layer.se) else [_timm_excite(layer.se, f"{name}.se")]
    return _block(name, convs, excites, bool(layer.has_skip))


def _timm_excite(module: Any, name: str) -> ForeignExcite:
    _expect(module, name, "timm.models._efficientnet_blocks.SqueezeExcite")
    _expect(module.gate, f"{name}.gate", _HARDSIGMOID)
    return _excite(name, module.conv_reduce, module.conv_expand, module.act1)


def _timm_conv(conv: Any, norm: Any, name: str, norm_name: str) -> ForeignConv:
    _expect(norm, norm_name, "timm.layers.norm_act.BatchNormAct2d")
    if not _named(_IDENTITY, norm.drop):
        raise UnknownModuleError(f"{norm_name}.drop is a {type(norm.drop).__name__}, needs Identity")
    return _conv(conv, norm, name, norm_name, _activation(norm.act, f"{norm_name}.act"))


def _block(name: str, convs: list[ForeignConv], excites: list[ForeignExcite], residual: bool) -> ForeignBlock:
    if len(convs) not in (2, 3) or len(excites) > 1:
        raise UnknownModuleError(f"{name} has {len(convs)} convolutions and {len(excites)} squeeze-excites")
    *expand, depthwise, project = convs
    return ForeignBlock(
        name, expand[0] if expand else None, depthwise, excites[0] if excites else None, project, residual
    )


def _conv(conv: nn.Module, norm: nn.Module, name: str, norm_name: str, activation: str | None) -> ForeignConv:
    _expect(conv, name, _CONV, _SAME)
    if not isinstance(norm, nn.BatchNorm2d):
        raise UnknownModuleError(f"{norm_name} is a {type(norm).__name__}, needs BatchNorm2d")
    assert isinstance(conv, nn.Conv2d)
    return ForeignConv(name, conv, norm, activation, _named(_SAME, conv))


def _excite(name: str, fc1: nn.Module, fc2: nn.Module, activation: nn.Module) -> ForeignExcite:
    for part, module in {"fc1": fc1, "fc2": fc2}.items():
        _expect(module, f"{name}.{part}", _CONV)
    between = _activation(activation, f"{name}.activation")
    assert isinstance(fc1, nn.Conv2d)
    assert isinstance(fc2, nn.Conv2d)
    return ForeignExcite(name, fc1, fc2, between)


def _activation(module: nn.Module, name: str) -> str | None:
    _expect(module, name, *_ACTIVATIONS)
    return _ACTIVATIONS[".".join(_class_of(module))]


def _children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, submodule) in order, one that stands in two places twice, unlike `named_children`."""
    return [(name, child) for name, child in module._modules.items() if child is not None]


def _mean(model: Any, attribute: str, prefix: str = "") -> None:
    pool = _one(model, attribute, "torch.nn.modules.pooling.AdaptiveAvgPool2d", prefix)
    if pool.output_size not in (1, (1, 1)):
        raise UnknownModuleError(f"{_join(prefix, attribute)} makes {pool.output_size} outputs, needs 1")


def _sequence(model: Any, name: str, least: int) -> list[nn.Module]:
    parts = [part for _, part in _children(_one(model, name, "torch.nn.modules.container.Sequential"))]
    if len(parts) < least:
        raise UnknownModuleError(f"{name} has {len(parts)} parts, needs {least}")
    return parts


def _one(model: Any, attribute: str, wanted: str, prefix: str = "") -> Any:
    module = getattr(model, attribute)
    _expect(module, _join(prefix, attribute), wanted)
    return module


def _join(prefix: str, attribute: str) -> str:
    return f"{prefix}.{attribute}" if prefix else attribute


def _expect(module: nn.Module, name: str, *wanted: str) -> None:
    """Only these very classes: a subclass may compute anything."""
    if ".".join(_class_of(module)) not in wanted:
        needed = " or ".join(one.rpartition(".")[2] for one in wanted)
        raise UnknownModuleError(f"{name} is a {type(module).__name__}, needs {needed}")


def _named(wanted: str, module: nn.Module) -> bool:
    return ".".join(_class_of(module)) == wanted


_CONV = "torch.nn.modules.conv.Conv2d"
_SAME = "timm.layers.conv2d_same.Conv2dSame"
_IDENTITY = "torch.nn.modules.linear.Identity"
_HARDSIGMOID = "torch.nn.modules.activation.Hardsigmoid"
_CONV_NORM = "torchvision.ops.misc.Conv2dNormActivation"
_TORCHVISION_EXCITE = "torchvision.ops.misc.SqueezeExcitation"
_ACTIVATIONS: dict[str, str | None] = {
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.Hardswish": "hardswish",
    _IDENTITY: None,
}
_READERS: dict[tuple[str, str], Callable[[nn.Module], ForeignNetwork]] = {
    ("torchvision.models.mobilenetv3", "MobileNetV3"): _torchvision,
    ("timm.models.mobilenetv3", "MobileNetV3"): _timm,
}
