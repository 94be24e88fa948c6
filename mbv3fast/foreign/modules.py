"""Modules looked at one by one, known by the full names of their classes: a subclass may compute anything."""

from __future__ import annotations

from typing import Any, TypeGuard

from torch import nn

from mbv3fast.foreign.network import ForeignBlock, ForeignConv, ForeignExcite, UnknownModuleError

IDENTITY = "torch.nn.modules.linear.Identity"
HARDSIGMOID = "torch.nn.modules.activation.Hardsigmoid"
SEQUENTIAL = "torch.nn.modules.container.Sequential"
CONV = "torch.nn.modules.conv.Conv2d"
LINEAR = "torch.nn.modules.linear.Linear"
TIMM_NORM = "timm.layers.norm_act.BatchNormAct2d"
_NORM = "torch.nn.modules.batchnorm.BatchNorm2d"
_SAME = "timm.layers.conv2d_same.Conv2dSame"
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
    expect(module, _join(prefix, attribute), wanted)
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
        raise UnknownModuleError(f"{_join(prefix, attribute)} makes {pool.output_size} outputs, needs 1")


def activation_name(module: object) -> str | None:
    """None for what is none, or isn't known."""
    return _ACTIVATIONS.get(class_name(module))


def activation_of(module: object, name: str) -> str | None:
    expect(module, name, *_ACTIVATIONS)
    return activation_name(module)


def conv_of(conv: object, norm: object, name: str, norm_name: str, activation: str | None) -> ForeignConv:
    expect(conv, name, CONV, _SAME)
    expect(norm, norm_name, _NORM, TIMM_NORM)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    if not 0 < norm.eps <= 1:
        raise UnknownModuleError(f"{norm_name}.eps is {norm.eps}, needs a number above 0, at most 1")
    if norm.momentum is not None and not 0 <= norm.momentum <= 1:
        raise UnknownModuleError(f"{norm_name}.momentum is {norm.momentum}, needs None or a number from 0 to 1")
    return ForeignConv(name, conv, norm_name, norm, activation, class_name(conv) == _SAME)


def excite_of(module: Any, name: str, fc1: str, activation: str, fc2: str) -> ForeignExcite:
    """Of the parts called so."""
    first, last = (child(module, part, CONV, name) for part in (fc1, fc2))
    return ForeignExcite(name, first, last, activation_of(getattr(module, activation), f"{name}.{activation}"))


def dropout_rate(rate: Any, name: str) -> float:
    if not 0 <= rate < 1:
        raise UnknownModuleError(f"{name} is {rate}, needs a number from 0 to below 1")
    return float(rate)


def block_of(name: str, convs: list[ForeignConv], excites: list[ForeignExcite], residual: bool) -> ForeignBlock:
    if len(convs) not in (2, 3) or len(excites) > 1:
        raise UnknownModuleError(f"{name} has {len(convs)} convolutions and {len(excites)} squeeze-excites")
    *expand, depthwise, project = convs
    return ForeignBlock(
        name, expand[0] if expand else None, depthwise, excites[0] if excites else None, project, residual
    )


def _join(prefix: str, attribute: str) -> str:
    return f"{prefix}.{attribute}" if prefix else attribute
