"""MobileNetV3s of torchvision and of timm as they stand, module by module. Imports neither.

Every module that takes part is looked at: one that isn't known, was replaced, or has hooks is refused by its name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from mbv3fast.foreign.classes import class_name
from mbv3fast.foreign.config import network_config
from mbv3fast.foreign.copies import fill
from mbv3fast.foreign.network import ForeignNetwork, UnknownModuleError
from mbv3fast.foreign.of_timm import timm_network, timm_preprocess
from mbv3fast.foreign.of_torchvision import torchvision_network
from mbv3fast.foreign.untouched import check_untouched

__all__ = [
    "ForeignNetwork",
    "UnknownModuleError",
    "fill",
    "last_map",
    "network_config",
    "read_network",
    "timm_preprocess",
]

_KINDS: dict[str, tuple[Callable[[Any], ForeignNetwork], str]] = {  # the reader, the name of what makes the last map
    "torchvision.models.mobilenetv3.MobileNetV3": (torchvision_network, "features"),
    "timm.models.mobilenetv3.MobileNetV3": (timm_network, "forward_features"),
}


def read_network(model: nn.Module) -> ForeignNetwork:
    """A model as it stands. Raises UnknownModuleError."""
    if class_name(model) not in _KINDS:
        raise UnknownModuleError(f"model is a {class_name(model)}, needs {' or '.join(_KINDS)}{_hint(model)}")
    for name, module in model.named_modules():
        check_untouched(module, name)
    if not isinstance(getattr(model, "classifier", None), nn.Module):
        raise UnknownModuleError("model has no module for a classifier")
    read, _ = _KINDS[class_name(model)]
    try:
        return read(model)
    except AttributeError as error:
        raise UnknownModuleError(f"model lacks a part: {error}") from error


def last_map(model: Any, x: Tensor) -> Tensor:
    """What the features of a model that was read make of images `x`."""
    _, features = _KINDS[class_name(model)]
    return getattr(model, features)(x)


def _hint(model: nn.Module) -> str:
    """How to reach the model in what others wrap it in, or who takes it."""
    if class_name(model) == "torchvision.models.segmentation.lraspp.LRASPP":
        return "; mbv3fast.lraspp_large(weights=model.state_dict()) takes this one"
    if class_name(model) == "timm.models.mobilenetv3.MobileNetV3Features":
        return "; mbv3fast.large() and small() have features_only=True"
    for attribute in ("_orig_mod", "module"):
        if isinstance(getattr(model, attribute, None), nn.Module):
            return f"; is it model.{attribute}?"
    return ""
