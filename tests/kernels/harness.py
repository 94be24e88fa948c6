"""What every kernel test needs: guarded tensors, both orders of the grid, and the networks' shapes.

The interpreter lets reads beyond a tensor pass in silence and runs programs in order. So every tensor lies between
bands of NaN, every output is NaN beforehand, and each launch is repeated with its grid run backwards: what comes out
must be the same bits, and the bands must stay as they were.

The interpreter takes milliseconds for each step of each program. So of all that could be combined, the default tier
runs each shape once, everything else taking turns (`in_turn`); the other combinations are slow.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from mbv3fast.config import network

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1: `make test-kernels`", allow_module_level=True)
interpreter = pytest.importorskip("triton.runtime.interpreter")
BAND = 4096  # elements
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
NAN = float("nan")


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


@contextmanager
def backwards() -> Iterator[None]:
    """Within, grids run from their last program to their first."""
    builder = interpreter.interpreter_builder
    forwards = type(builder).set_grid_idx

    def mirrored(self: object, *index: int) -> None:
        forwards(self, *(size - 1 - i for size, i in zip(builder.grid_dim, index, strict=True)))

    type(builder).set_grid_idx = mirrored
    try:
        yield
    finally:
        type(builder).set_grid_idx = forwards


def run(launch: Callable[[], None], guards: Guards, *outputs: Tensor) -> None:
    """Launch in both orders of the grid: whole outputs of equal bits, nothing written elsewhere."""
    launch()
    first = [output.clone() for output in outputs]
    for output in outputs:
        output.fill_(NAN)
    with backwards():
        launch()
    for output, before in zip(outputs, first, strict=True):
        assert not output.isnan().any(), "something was not written, or read from outside"
        assert torch.equal(output, before), "the order of programs shows"
    guards.check()


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


BATCHES = (1, 128)  # images that configurations are for: few and many
BLOCKS = list(dict.fromkeys(itertools.chain(network("large").blocks, network("small").blocks)))
