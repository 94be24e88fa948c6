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


def class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def expect(module: nn.Module, name: str, *wanted: str) -> None:
    if class_name(module) not in wanted:
        needed = " or ".join(one.rpartition(".")[2] for one in wanted)
        raise UnknownModuleError(f"{name} is a {type(module).__name__}, needs {needed}")


def child(model: Any, attribute: str, wanted: str, prefix: str = "") -> Any:
    module = getattr(model, attribute)
    expect(module, _join(prefix, attribute), wanted)
    return module


def children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, submodule) in order, one that stands in two places twice, unlike `named_children`."""
    return [(name, part) for name, part in module._modules.items() if part is not None]


def is_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a plain linear layer; timm's casts under autocast, as PyTorch does by itself."""
    return class_name(module) in (LINEAR, "timm.layers.linear.Linear")


def expect_mean(model: Any, attribute: str, prefix: str = "") -> None:
    pool = child(model, attribute, _POOL, prefix)
    if pool.output_size not in (1, (1, 1)):
        raise UnknownModuleError(f"{_join(prefix, attribute)} makes {pool.output_size} outputs, needs 1")


def activation_name(module: nn.Module) -> str | None:
    """None for what is none, or isn't known."""
    return _ACTIVATIONS.get(class_name(module))


def activation_of(module: nn.Module, name: str) -> str | None:
    expect(module, name, *_ACTIVATIONS)
    return activation_name(module)


def conv_of(conv: nn.Module, norm: nn.Module, name: str, norm_name: str, activation: str | None) -> ForeignConv:
    expect(conv, name, CONV, _SAME)
    expect(norm, norm_name, _NORM, TIMM_NORM)
    assert isinstance(conv, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    return ForeignConv(name, conv, norm, activation, class_name(conv) == _SAME)


def excite_of(name: str, fc1: nn.Module, fc2: nn.Module, activation: nn.Module) -> ForeignExcite:
    for part, module in {"fc1": fc1, "fc2": fc2}.items():
        expect(module, f"{name}.{part}", CONV)
    assert isinstance(fc1, nn.Conv2d)
    assert isinstance(fc2, nn.Conv2d)
    return ForeignExcite(name, fc1, fc2, activation_of(activation, f"{name}.activation"))


def block_of(name: str, convs: list[ForeignConv], excites: list[ForeignExcite], residual: bool) -> ForeignBlock:
    if len(convs) not in (2, 3) or len(excites) > 1:
        raise UnknownModuleError(f"{name} has {len(convs)} convolutions and {len(excites)} squeeze-excites")
    *expand, depthwise, project = convs
    return ForeignBlock(
        name, expand[0] if expand else None, depthwise, excites[0] if excites else None, project, residual
    )


def _join(prefix: str, attribute: str) -> str:
    return f"{prefix}.{attribute}" if prefix else attribute
