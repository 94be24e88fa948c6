"""MobileNetV3s of torchvision and of timm as they stand, module by module. Imports neither.

Every module that takes part is looked at: one that isn't known, was replaced, or has hooks is refused by its name.
"""

from __future__ import annotations

from torch import nn

from mbv3fast.foreign.config import network_config
from mbv3fast.foreign.copies import fill
from mbv3fast.foreign.modules import class_name
from mbv3fast.foreign.network import ForeignNetwork, UnknownModuleError
from mbv3fast.foreign.of_timm import timm_network
from mbv3fast.foreign.of_torchvision import torchvision_network
from mbv3fast.foreign.untouched import check_untouched

__all__ = [
    "ForeignNetwork",
    "UnknownModuleError",
    "fill",
    "network_config",
    "read_network",
]

_READERS = {
    "torchvision.models.mobilenetv3.MobileNetV3": torchvision_network,
    "timm.models.mobilenetv3.MobileNetV3": timm_network,
}


def read_network(model: nn.Module) -> ForeignNetwork:
    """A model as it stands. Raises UnknownModuleError."""
    reader = _READERS.get(class_name(model))
    if reader is None:
        raise UnknownModuleError(f"model is a {class_name(model)}, needs {' or '.join(_READERS)}{_hint(model)}")
    for name, module in model.named_modules():
        check_untouched(module, name)
    if not isinstance(getattr(model, "classifier", None), nn.Module):
        raise UnknownModuleError("model has no module for a classifier")
    try:
        return reader(model)
    except AttributeError as error:
        raise UnknownModuleError(f"model lacks a part: {error}") from error


def _hint(model: nn.Module) -> str:
    """How to reach the model in what others wrap it in."""
    for attribute in ("_orig_mod", "module"):
        if isinstance(getattr(model, attribute, None), nn.Module):
            return f"; is it model.{attribute}?"
    return ""
