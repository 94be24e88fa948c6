"""Modules known by the full names of their classes, since a subclass may compute anything; imports nobody's package."""

from __future__ import annotations

from typing import Any, TypeGuard

from torch import nn

from mbv3fast.foreign.network import UnknownModuleError

IDENTITY = "torch.nn.modules.linear.Identity"
HARDSIGMOID = "torch.nn.modules.activation.Hardsigmoid"
SEQUENTIAL = "torch.nn.modules.container.Sequential"
CONV = "torch.nn.modules.conv.Conv2d"
NORM = "torch.nn.modules.batchnorm.BatchNorm2d"
LINEAR = "torch.nn.modules.linear.Linear"
_POOL = "torch.nn.modules.pooling.AdaptiveAvgPool2d"
_ACTIVATIONS: dict[str, str | None] = {
    "torch.nn.modules.activation.ReLU": "relu",
    "torch.nn.modules.activation.Hardswish": "hardswish",
    IDENTITY: None,
}


def class_name(module: object) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def expect(module: object, name: str, *wanted: str) -> None:
    got = class_name(module)
    if got not in wanted:
        needed = [one.rpartition(".")[2] for one in wanted]
        said = got if type(module).__name__ in needed else type(module).__name__  # of classes of one name, the whole
        raise UnknownModuleError(f"{name} is a {said}, needs {' or '.join(needed)}")


def child(model: Any, attribute: str, wanted: str, prefix: str = "") -> Any:
    module = getattr(model, attribute)
    expect(module, f"{prefix}.{attribute}" if prefix else attribute, wanted)
    return module


def children(module: nn.Module) -> list[tuple[str, Any]]:
    """(name, submodule) in order, one that stands in two places twice, unlike `named_children`, and None as it is."""
    return list(module._modules.items())


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a plain linear layer; timm's casts under autocast, as PyTorch does by itself."""
    return class_name(module) in (LINEAR, "timm.layers.linear.Linear")


def expect_mean(model: Any, attribute: str, prefix: str = "") -> None:
    pool = child(model, attribute, _POOL, prefix)
    if pool.output_size not in (1, (1, 1)):
        name = f"{prefix}.{attribute}" if prefix else attribute
        raise UnknownModuleError(f"{name} makes {pool.output_size} outputs, needs 1")


def activation_name(module: object) -> str | None:
    """None for what is none, or isn't known."""
    return _ACTIVATIONS.get(class_name(module))


def activation_of(module: object, name: str) -> str | None:
    expect(module, name, *_ACTIVATIONS)
    return activation_name(module)
