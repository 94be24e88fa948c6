"""timm's MobileNetV3."""

from __future__ import annotations

from typing import Any

from mbv3fast.foreign.classes import (
    CONV,
    HARDSIGMOID,
    IDENTITY,
    SEQUENTIAL,
    activation_of,
    child,
    children,
    class_name,
    expect,
)
from mbv3fast.foreign.network import (
    ForeignBlock,
    ForeignConv,
    ForeignExcite,
    ForeignHead,
    ForeignNetwork,
    Named,
    UnknownModuleError,
)
from mbv3fast.foreign.parts import block_of, conv_of, dropout_rate, excite_of
from mbv3fast.preprocess import Preprocess

_NORM = "timm.layers.norm_act.BatchNormAct2d"
_SAME = "timm.layers.conv2d_same.Conv2dSame"


def timm_network(model: Any) -> ForeignNetwork:
    for name, wanted in {"norm_head": IDENTITY, "flatten": "torch.nn.modules.flatten.Flatten"}.items():
        child(model, name, wanted)
    pool = child(model, "global_pool", "timm.layers.adaptive_avgmax_pool.SelectAdaptivePool2d")
    if pool.pool_type != "avg":
        raise UnknownModuleError(f"global_pool takes the {pool.pool_type}, needs the mean")
    stem = _conv(model.conv_stem, model.bn1, "conv_stem", "bn1")
    blocks: list[ForeignBlock] = []
    lasts: list[ForeignConv] = []
    for stage, layers in children(child(model, "blocks", SEQUENTIAL)):
        expect(layers, f"blocks.{stage}", SEQUENTIAL)
        for position, layer in children(layers):
            name = f"blocks.{stage}.{position}"
            if class_name(layer) == "timm.models._efficientnet_blocks.ConvBnAct":
                lasts.append(_last(layer, name))
            elif lasts:
                raise UnknownModuleError(f"{name} is a {type(layer).__name__} behind the last convolution")
            else:
                blocks.append(_block(layer, name))
    if not lasts:
        raise UnknownModuleError("blocks end without a convolution")
    layer = Named("conv_head", child(model, "conv_head", CONV))
    head = ForeignHead(layer, activation_of(model.act2, "act2"), model.training)
    return ForeignNetwork(
        stem,
        tuple(blocks),
        tuple(lasts),
        head,
        dropout_rate(model.drop_rate, "drop_rate"),
        Named("classifier", model.classifier),
    )


def timm_preprocess(model: Any, channels: int) -> Preprocess | None:
    """What a model's `pretrained_cfg`, if it has one, says of images of so many channels."""
    said = getattr(model, "pretrained_cfg", None)
    if not said:
        return None
    try:
        said = said if isinstance(said, dict) else said.to_dict()
        if said.get("crop_mode", "center") != "center" or len({*said["input_size"][1:]}) > 1:
            raise ValueError(f"crop_mode {said.get('crop_mode')}, input_size {said['input_size']}")
        return Preprocess.of_timm(said) if len(said["mean"]) == channels else None
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UnknownModuleError(f"pretrained_cfg: {type(error).__name__}: {error}; pass preprocess=") from error


def _last(layer: Any, name: str) -> ForeignConv:
    if layer.has_skip or class_name(layer.aa) != IDENTITY:
        raise UnknownModuleError(f"{name} has a residual or an anti-aliasing filter")
    return _conv(layer.conv, layer.bn1, f"{name}.conv", f"{name}.bn1")


def _block(layer: Any, name: str) -> ForeignBlock:
    shallow = class_name(layer) == "timm.models._efficientnet_blocks.DepthwiseSeparableConv"
    if not shallow:
        expect(layer, name, "timm.models._efficientnet_blocks.InvertedResidual")
    if class_name(layer.aa) != IDENTITY or getattr(layer, "conv_s2d", None) is not None:
        raise UnknownModuleError(f"{name} has an anti-aliasing filter or a space-to-depth convolution")
    names = ("conv_dw", "conv_pw") if shallow else ("conv_pw", "conv_dw", "conv_pwl")
    convs = [
        _conv(getattr(layer, part), getattr(layer, f"bn{number}"), f"{name}.{part}", f"{name}.bn{number}")
        for number, part in enumerate(names, 1)
    ]
    excites = [] if class_name(layer.se) == IDENTITY else [_excite(layer.se, f"{name}.se")]
    return block_of(name, convs, excites, bool(layer.has_skip))


def _excite(module: Any, name: str) -> ForeignExcite:
    expect(module, name, "timm.models._efficientnet_blocks.SqueezeExcite")
    child(module, "gate", HARDSIGMOID, name)
    return excite_of(module, name, "conv_reduce", "act1", "conv_expand")


def _conv(conv: Any, norm: Any, name: str, norm_name: str) -> ForeignConv:
    expect(conv, name, CONV, _SAME)
    expect(norm, norm_name, _NORM)
    if class_name(norm.drop) != IDENTITY:
        raise UnknownModuleError(f"{norm_name}.drop is a {type(norm.drop).__name__}, needs Identity")
    activation = activation_of(norm.act, f"{norm_name}.act")
    return conv_of(Named(name, conv), Named(norm_name, norm), activation, same=class_name(conv) == _SAME)
