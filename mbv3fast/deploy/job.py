"""What is to be exported, and what came of it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree

from mbv3fast.agreement import FACTOR, Difference
from mbv3fast.calls import CUSTOMISED
from mbv3fast.checks import MIN_SIZE
from mbv3fast.serving import Served
from mbv3fast.torch_state import autocast_enabled

_MOST_PIXELS = 2**30  # of an image


class ExportError(RuntimeError):
    """A file that can't be made, or that computes something else than the model."""


class Written(NamedTuple):
    """A file's contents in words, the most images it takes (None: any number), whether it takes any size, what a reader
    imports first, and how many times PyTorch's own error it may have.
    """

    contents: str
    most: int | None
    any_size: bool = False
    imports: tuple[str, ...] = ()
    factor: float = FACTOR


@dataclass(frozen=True)
class Exported:
    """A file, its contents and its input in words, its size in bytes; if that was asked for, its difference from the
    model, and the shapes of the inputs that it was tried with.
    """

    path: Path
    contents: str
    input: str
    bytes: int
    difference: Difference | None
    tried: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True)
class Job:
    """The arguments of `export`; `of` checks them."""

    model: Served
    size: tuple[int, ...]
    batch: int
    uint8: bool
    backend: str
    opset: int
    verify: bool = True

    @classmethod
    def of(cls, model: Any, size: Any, batch: Any, uint8: bool, backend: str, opset: Any, verify: bool) -> Job:
        """Of arguments as users give them. Raises TypeError and ValueError."""
        _check_model(model)
        try:
            whole = tuple(map(operator.index, size))
        except TypeError as error:
            raise ValueError(f"size: got {size!r}, needs a height and a width") from error
        if len(whole) != 2 or min(whole) < MIN_SIZE or whole[0] * whole[1] > _MOST_PIXELS:
            needs = f"needs a height and a width of at least {MIN_SIZE}, and at most 2^30 pixels"
            raise ValueError(f"size: got {whole!r}, {needs}")
        try:
            images = 0 if isinstance(batch, bool) else operator.index(batch)
        except TypeError as error:
            raise ValueError(f"batch: got {batch!r}, needs a whole number of images") from error
        if images < 1:
            raise ValueError(f"batch: got {images!r}, needs at least 1 image")
        try:
            version = operator.index(opset)
        except TypeError as error:
            raise ValueError(f"opset: got {opset!r}, needs a whole number") from error
        return cls(model, whole, images, bool(uint8), backend, version, verify)

    @property
    def like(self) -> Tensor:
        """A tensor on the model's device, of its dtype."""
        return next(self.model.parameters())

    def images(self, count: int, size: Sequence[int] | None = None) -> Tensor:
        """Random ones, the same each time."""
        height, width = size or self.size
        generator = torch.Generator().manual_seed(count)
        channels = self.model.config.in_chans
        if self.uint8:
            pixels = torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)
            return pixels.to(self.like.device)
        return torch.randn((count, channels, height, width), generator=generator).to(self.like.device, self.like.dtype)

    def signature(self, written: Written) -> str:
        """The input of a file in words."""
        height, width = ("H", "W") if written.any_size else self.size
        channels = self.model.config.in_chans
        dtype = "uint8" if self.uint8 else str(self.like.dtype).removeprefix("torch.")
        axes = (height, width, channels) if self.uint8 else (channels, height, width)
        most = "" if written.most is None else f" to {written.most:,}"
        return f"{dtype} [N, {', '.join(map(str, axes))}], N from 1{most}"


def _check_model(model: Any) -> None:
    if not isinstance(model, Served):
        raise TypeError(f"model: got a {type(model).__name__}, needs one of mbv3fast's; see mbv3fast.accelerate")
    training = next((name or "itself" for name, part in model.named_modules() if part.training), None)
    if training is not None:
        raise ValueError(f"model: {training} is in training mode; call eval() first")
    device = next(model.parameters()).device
    if device.type == "meta":
        raise ValueError("model: is on meta, it has no weights")
    if not model.is_plain():
        raise ValueError(f"model: {CUSTOMISED}, which no file would do")
    if autocast_enabled(device):
        raise ValueError("model: is exported under autocast, whose dtypes the file would keep; leave that first")


def leaves(outputs: Any) -> list[Tensor]:
    """The tensors of a classifier's, an extractor's or a segmenter's output."""
    return list(_pytree.tree_leaves(outputs))
