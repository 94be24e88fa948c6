"""torchvision's MobileNetV3."""

from __future__ import annotations

from typing import Any

from torch import nn

from mbv3fast.foreign.classes import (
    CONV,
    HARDSIGMOID,
    IDENTITY,
    LINEAR,
    NORM,
    SEQUENTIAL,
    activation_name,
    activation_of,
    child,
    children,
    class_name,
    expect,
    expect_mean,
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

_CONV_NORM = "torchvision.ops.misc.Conv2dNormActivation"
_DROPOUT = "torch.nn.modules.dropout.Dropout"
_EXCITE = "torchvision.ops.misc.SqueezeExcitation"


def torchvision_network(model: Any) -> ForeignNetwork:
    features = child(model, "features", SEQUENTIAL)
    layers = [(f"features.{name}", layer) for name, layer in children(features)]
    convs = [class_name(layer) == _CONV_NORM for _, layer in layers]
    if len(layers) < 3 or not convs[0] or not convs[-1]:
        raise UnknownModuleError("features needs convolutions at its ends, and blocks between them")
    last = convs.index(True, 1)
    stem, *others = (_conv(layer, name) for (name, layer), plain in zip(layers, convs, strict=True) if plain)
    blocks = [_block(layer, name) for name, layer in layers[1:last]]
    expect_mean(model, "avgpool")
    return ForeignNetwork(stem, tuple(blocks), tuple(others), *_classifier(model.classifier))


def _classifier(classifier: nn.Module) -> tuple[ForeignHead | None, float, Named[nn.Module]]:
    """The head, its dropout and the one module that follows; of anything else that users put there, all follows."""
    whole = None, 0.0, Named("classifier", classifier)
    if class_name(classifier) != SEQUENTIAL or len(classifier._modules) != 4:
        return whole
    head, activation, dropout, last = (part for _, part in children(classifier))
    if class_name(head) != LINEAR or activation_name(activation) is None:
        return whole
    if class_name(dropout) not in (_DROPOUT, IDENTITY):
        return whole
    rate = dropout_rate(dropout.p, "classifier.2.p") if class_name(dropout) == _DROPOUT else 0.0
    read = ForeignHead(Named("classifier.0", head), activation_name(activation), dropout.training)
    return read, rate, Named("classifier.3", last)


def _conv(module: Any, name: str) -> ForeignConv:
    expect(module, name, _CONV_NORM)
    parts = [part for _, part in children(module)]
    if len(parts) not in (2, 3):
        raise UnknownModuleError(f"{name} has {len(parts)} parts, needs conv, batch norm and at most an activation")
    activation = activation_of(parts[2], f"{name}.2") if len(parts) == 3 else None
    conv, norm = Named(f"{name}.0", parts[0]), Named(f"{name}.1", parts[1])
    expect(conv.module, conv.name, CONV)
    expect(norm.module, norm.name, NORM)
    return conv_of(conv, norm, activation)


def _block(module: Any, name: str) -> ForeignBlock:
    expect(module, name, "torchvision.models.mobilenetv3.InvertedResidual")
    parts = children(child(module, "block", SEQUENTIAL, name))
    excites = [_excite(part, f"{name}.block.{key}") for key, part in parts if class_name(part) == _EXCITE]
    convs = [_conv(part, f"{name}.block.{key}") for key, part in parts if class_name(part) != _EXCITE]
    return block_of(name, convs, excites, bool(module.use_res_connect))


def _excite(module: Any, name: str) -> ForeignExcite:
    expect_mean(module, "avgpool", name)
    child(module, "scale_activation", HARDSIGMOID, name)
    return excite_of(module, name, "fc1", "activation", "fc2")
