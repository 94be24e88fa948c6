"""The rule by which two computations of one thing agree: docs/numerics.md has it in words."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

FACTOR = 2  # of PyTorch's own error, for our kernels
OTHERS_FACTOR = 10  # for code of other makers, which fuses and sums as it likes


class Difference(NamedTuple):
    """The largest error against float64 of what was computed, and what is allowed."""

    error: float
    allowed: float

    def __str__(self) -> str:
        return f"{self.error:.3g}, {self.allowed:.3g} is allowed"

    @property
    def agrees(self) -> bool:
        return self.error <= self.allowed < math.inf  # which NaN isn't, nor what PyTorch itself overflows at


def difference(got: Tensor, plain: Tensor, truth: Tensor, factor: float = FACTOR, floor: float = 0) -> Difference:
    """How far `got` is from `truth` (float64), and how far it may be: `factor` times as far as PyTorch's `plain`.

    got, plain: the images of `truth`, or these repeated. floor: of the largest output, added to what is allowed; at
    least one unit in the last place.
    """
    floor = max(floor, torch.finfo(got.dtype).eps) * truth.abs().max().item()
    return Difference(_largest_error(got, truth), factor * _largest_error(plain, truth) + floor)


def _largest_error(got: Tensor, truth: Tensor) -> float:
    """The largest error of any image, NaN where one is."""
    errors = [(part.to(truth.dtype) - truth[: len(part)]).abs().max() for part in got.split(len(truth))]
    return torch.stack(errors).max().item()
