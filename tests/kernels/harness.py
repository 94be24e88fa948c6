"""What every kernel test needs: guarded tensors, both orders of the grid, and the networks' shapes.

The interpreter lets reads beyond a tensor pass in silence and runs programs in order. So every tensor lies between
bands of NaN, every output is NaN beforehand (`tests.guards`), and each launch is repeated with its grid run backwards:
what comes out must be the same bits, and the bands must stay as they were.

The interpreter takes milliseconds for each step of each program. So of all that could be combined, the default tier
runs each shape once, everything else taking turns (`in_turn`); the other combinations are slow.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tests.guards import BLOCKS, NAN, Guards, in_turn

__all__ = ["BATCHES", "BLOCKS", "DTYPES", "Guards", "backwards", "in_turn", "interpreter", "run"]

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1: `make test-kernels`", allow_module_level=True)
interpreter = pytest.importorskip("triton.runtime.interpreter")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


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


BATCHES = (1, 128)  # images that configurations are for: few and many
