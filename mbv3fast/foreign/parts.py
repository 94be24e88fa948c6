"""Records of a network's parts, made of modules that were looked at."""

from __future__ import annotations

from typing import Any

from torch import nn

from mbv3fast.foreign.classes import CONV, activation_of, child
from mbv3fast.foreign.network import ForeignBlock, ForeignConv, ForeignExcite, Named, UnknownModuleError


def conv_of(
    conv: Named[nn.Conv2d], norm: Named[nn.BatchNorm2d], activation: str | None, *, same: bool = False
) -> ForeignConv:
    for attribute in ("kernel_size", "stride", "dilation"):
        sizes = getattr(conv.module, attribute)
        if not isinstance(sizes, tuple) or len({*sizes}) > 1:  # who sets it by hand may have set one
            raise UnknownModuleError(f"{conv.name}.{attribute} is {sizes}, needs two equal numbers")
    eps, momentum = norm.module.eps, norm.module.momentum
    if not 0 < eps <= 1:
        raise UnknownModuleError(f"{norm.name}.eps is {eps}, needs a number above 0, at most 1")
    if momentum is not None and not 0 <= momentum <= 1:
        raise UnknownModuleError(f"{norm.name}.momentum is {momentum}, needs None or a number from 0 to 1")
    return ForeignConv(conv, norm, activation, same)


def excite_of(module: Any, name: str, fc1: str, activation: str, fc2: str) -> ForeignExcite:
    """Of the parts called so."""
    first, last = (Named(f"{name}.{part}", child(module, part, CONV, name)) for part in (fc1, fc2))
    return ForeignExcite(name, first, last, activation_of(getattr(module, activation), f"{name}.{activation}"))


def block_of(name: str, convs: list[ForeignConv], excites: list[ForeignExcite], residual: bool) -> ForeignBlock:
    if len(convs) not in (2, 3) or len(excites) > 1:
        raise UnknownModuleError(f"{name} has {len(convs)} convolutions and {len(excites)} squeeze-excites")
    *expand, depthwise, project = convs
    squeeze_excite = excites[0] if excites else None
    return ForeignBlock(name, expand[0] if expand else None, depthwise, squeeze_excite, project, residual)


def dropout_rate(rate: Any, name: str) -> float:
    if not 0 <= rate < 1:
        raise UnknownModuleError(f"{name} is {rate}, needs a number from 0 to below 1")
    return float(rate)
