"""What every test of a CUDA kernel needs: launches in random orders of threads, on guarded tensors, seen and checked.

The emulation knows each tensor's bounds; bands of NaN around it (`tests.guards`) would tell if these were wrong. What
Python believes of a launch is compared with what the library asked for.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mbv3fast.launching import Launch, watch_launches
from mbv3fast.layers import Padding
from tests.guards import NAN, Guards

DTYPES = (torch.float16, torch.bfloat16)


class Asked(NamedTuple):
    """What a launch asked a chip for."""

    blocks: int
    threads: int
    shared_bytes: int
    cluster: int


def last_launch(library: ctypes.CDLL) -> Asked:
    """Of this thread, by the emulated library."""
    return Asked(*_figures(library)[1:])


def count_launches(library: ctypes.CDLL) -> int:
    """Of this thread, until now."""
    return _figures(library)[0]


def _figures(library: ctypes.CDLL) -> list[int]:
    figures = (ctypes.c_int64 * 5)()
    library.mbv3fast_emulation_launched(ctypes.byref(figures))
    return list(figures)


def assert_seen(library: ctypes.CDLL, seen: list[Launch], before: int) -> None:
    """What was announced is what the library launched since there were `before`."""
    assert len(seen) == count_launches(library) - before
    asked = last_launch(library)
    assert (seen[-1].grid, 32 * seen[-1].constants["num_warps"]) == (asked.blocks, asked.threads)


def run(
    library: ctypes.CDLL, launch: Callable[[], None], guards: Guards, *outputs: Tensor, seeds: Iterable[int] = (0,)
) -> None:
    """Launch, with threads in the order of each seed: whole outputs of equal bits, nothing written elsewhere."""
    first: list[Tensor] = []
    for seed in seeds:
        for output in outputs:
            output.fill_(NAN)
        library.mbv3fast_emulate(90, seed)
        seen: list[Launch] = []
        before = count_launches(library)
        with watch_launches(seen.append):
            launch()
        assert_seen(library, seen, before)
        for output in outputs:
            assert not output.isnan().any(), "something was not written, or read from outside"
        first = first or [output.clone() for output in outputs]
        for output, before in zip(outputs, first, strict=True):
            assert torch.equal(output, before), "the order of threads shows"
    guards.check()


class Window(NamedTuple):
    """Of a depthwise convolution; padding: at left, right, top, bottom."""

    kernel: int
    stride: int
    padding: Padding

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        left, right, top, bottom = self.padding
        sizes = height + top + bottom, width + left + right
        return (sizes[0] - self.kernel) // self.stride + 1, (sizes[1] - self.kernel) // self.stride + 1


def square(weight: Tensor, kernel: int) -> Tensor:
    """A kernel's [kernel * kernel, C] as PyTorch has it, [C, 1, kernel, kernel]."""
    return weight.T.reshape(-1, 1, kernel, kernel)


def sums_of_tiles(y: Tensor, tile_height: int, tile_width: int) -> Tensor:
    """Of y [N, H, W, C] over its tiles, row by row: [N, tiles, C]."""
    images, height, width, channels = y.shape
    y = F.pad(y, (0, 0, 0, -width % tile_width, 0, -height % tile_height))
    return y.view(images, -(-height // tile_height), tile_height, -1, tile_width, channels).sum((2, 4)).flatten(1, 2)
