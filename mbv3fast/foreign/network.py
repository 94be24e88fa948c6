"""What is read of a MobileNetV3 that others built: its modules, and how they stand together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module, covariant=True)


class UnknownModuleError(ValueError):
    """A module that has no equivalent; the message names it."""


@dataclass(frozen=True)
class Named(Generic[Module]):
    """A module and its name in the model."""

    name: str
    module: Module


@dataclass(frozen=True)
class ForeignConv:
    """A convolution, its batch norm, and the activation behind it; `same`: TensorFlow's padding."""

    conv: Named[nn.Conv2d]
    norm: Named[nn.BatchNorm2d]
    activation: str | None
    same: bool


@dataclass(frozen=True)
class ForeignExcite:
    """Squeeze-excite's two 1x1 convolutions with biases."""

    name: str
    fc1: Named[nn.Conv2d]
    fc2: Named[nn.Conv2d]
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
class ForeignHead:
    """A linear layer or a 1x1 convolution of the means, its activation, and whether the dropout behind is at work."""

    layer: Named[nn.Linear | nn.Conv2d]
    activation: str | None
    drops: bool


@dataclass(frozen=True)
class ForeignNetwork:
    """`classifier` follows the head, or takes its place where that is None: users put there what they like."""

    stem: ForeignConv
    blocks: tuple[ForeignBlock, ...]
    last_convs: tuple[ForeignConv, ...]
    head: ForeignHead | None
    dropout: float
    classifier: Named[nn.Module]
