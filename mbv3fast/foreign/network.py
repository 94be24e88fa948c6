"""What is read of a MobileNetV3 that others built: its modules, and how they stand together."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


class UnknownModuleError(ValueError):
    """A module that has no equivalent; the message names it."""


@dataclass(frozen=True)
class ForeignConv:
    """A convolution, its batch norm, and the activation behind it; `same`: TensorFlow's padding."""

    name: str
    conv: nn.Conv2d
    norm: nn.BatchNorm2d
    activation: str | None
    same: bool


@dataclass(frozen=True)
class ForeignExcite:
    """Squeeze-excite's two 1x1 convolutions with biases."""

    name: str
    fc1: nn.Conv2d
    fc2: nn.Conv2d
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
class ForeignNetwork:
    """head: a linear layer or a 1x1 convolution of the means, with its activation; `classifier` follows it.

    Where users put another classifier, `head` and its activation are None.
    """

    stem: ForeignConv
    blocks: tuple[ForeignBlock, ...]
    last_convs: tuple[ForeignConv, ...]
    head: nn.Linear | nn.Conv2d | None
    head_activation: str | None
    dropout: float
    classifier: nn.Module
