"""Tensors between bands of NaN, the blocks of both networks, and what of all combinations runs by default.

Kernels that are checked too little read beyond a tensor in silence. So every tensor lies between bands of NaN, every
output is NaN beforehand, and the bands must stay as they were.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from mbv3fast.config import network

BAND = 4096  # elements
NAN = float("nan")
BLOCKS = list(dict.fromkeys(itertools.chain(network("large").blocks, network("small").blocks)))


class Guards:
    """Makes tensors between bands of NaN, and checks that the bands are whole."""

    def __init__(self, seed: int = 0) -> None:
        self._buffers: list[Tensor] = []
        self._generator = torch.Generator().manual_seed(seed)

    def hold(self, values: Tensor) -> Tensor:
        """A copy of `values`, contiguous, between bands."""
        if not values.is_floating_point():
            return values.contiguous()
        buffer = torch.full((values.numel() + 2 * BAND,), NAN, dtype=values.dtype)
        self._buffers.append(buffer)
        return buffer[BAND:-BAND].view(values.shape).copy_(values)

    def randn(self, *shape: int, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
        return self.hold((torch.randn(shape, generator=self._generator) * scale).to(dtype))

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        """An output, poisoned."""
        return self.hold(torch.full(shape, NAN, dtype=dtype))

    def check(self) -> None:
        for buffer in self._buffers:
            assert buffer[:BAND].isnan().all(), "written before a tensor"
            assert buffer[-BAND:].isnan().all(), "written behind a tensor"


def in_turn(shapes: Iterable[object], *choices: Iterable[object]) -> list[pytest.ParameterSet]:
    """Every shape with every case of the choices' product, as (shape, *case).

    Each shape has one case in the default tier, the next shape the next one; the others are slow.
    """
    cases = list(itertools.product(*choices))
    return [
        pytest.param(
            shape,
            *case,
            id="-".join(map(str, (shape, *case))),
            marks=() if turn == index % len(cases) else pytest.mark.slow,
        )
        for (index, shape), (turn, case) in itertools.product(enumerate(shapes), enumerate(cases))
    ]
