"""What is read of a MobileNetV3 that others built: its modules, and how they stand together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from mbv3fast.preprocess import Preprocess


class UnknownModuleError(ValueError):
    """A module that has no equivalent; the message names it."""


@dataclass(frozen=True)
class ForeignConv:
    """A convolution, its batch norm, and the activation behind it; `same`: TensorFlow's padding."""

    name: str
    conv: nn.Conv2d
    norm_name: str
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
class ForeignHead:
    """A linear layer or a 1x1 convolution of the means, and its activation."""

    name: str
    layer: nn.Linear | nn.Conv2d
    activation: str | None


@dataclass(frozen=True)
class ForeignNetwork:
    """`classifier` follows the head, or takes its place where that is None: users put there what they like.

    features: images to the last map. preprocess: None where the model doesn't say how images were prepared.
    """

    stem: ForeignConv
    blocks: tuple[ForeignBlock, ...]
    last_convs: tuple[ForeignConv, ...]
    head: ForeignHead | None
    dropout: float
    classifier: nn.Module
    features: Callable[[Tensor], Tensor]
    preprocess: Preprocess | None = None
