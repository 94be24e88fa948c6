"""Whether a model is still what its description says; a file that says otherwise would be read back wrong."""

from __future__ import annotations

import torch
from torch import nn

from mbv3fast.model import MobileNetV3
from mbv3fast.weights.errors import WeightsError

_ATTRIBUTES = ("eps", "kernel_size", "stride", "padding", "padding_mode", "dilation", "groups", "has_residual")


def require_classifier(model: nn.Module, caller: str) -> None:
    """Raise TypeError for any other kind of model."""
    if not isinstance(model, MobileNetV3):
        raise TypeError(f"{caller}: got a {type(model).__name__}, needs a model of mbv3fast.large() or small()")


def refuse_rebuilt(model: MobileNetV3, caller: str) -> None:
    """Raise WeightsError naming the first module that was replaced or altered."""
    if found := rebuilt(model):
        raise WeightsError(f"{caller}: {found}; the file could not say so")


def rebuilt(model: MobileNetV3) -> str:
    """The first module that was replaced or altered, and how; empty where the config says all."""
    with torch.device("meta"):
        built = MobileNetV3(model.description().config)
    ours, theirs = dict(model.named_modules()), dict(built.named_modules())
    for name in dict.fromkeys([*theirs, *ours]):
        if name and _signature(ours.get(name)) != _signature(theirs.get(name)):
            return f"{name} is {ours.get(name)}, where {theirs.get(name)} was built"
    needed, state = built.state_dict(), model.state_dict()
    for key in dict.fromkeys([*needed, *state]):
        if key not in state or key not in needed or state[key].shape != needed[key].shape:
            return f"{key} is not as it was built"
    return ""


def _signature(module: nn.Module | None) -> tuple[object, ...]:
    return (type(module), *(getattr(module, name, None) for name in _ATTRIBUTES))
