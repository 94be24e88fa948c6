"""What programs read through the window of a convolution: how often, and how much of it twice."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from mbv3fast.launching import Launch


def ceil(whole: int, part: int) -> int:
    return -(-whole // part)


class Axis(NamedTuple):
    """One axis of a window: outputs come in `tiles` of `tile`; output o reads o * stride - before + tap * dilation."""

    size: int  # of the input
    tiles: int
    tile: int
    kernel: int
    stride: int
    before: int
    dilation: int = 1

    def sees(self, output: int) -> set[int]:
        """The places of the input that an output reads."""
        places = (output * self.stride - self.before + tap * self.dilation for tap in range(self.kernel))
        return {place for place in places if 0 <= place < self.size}


@functools.cache
def count_reads(axis: Axis) -> int:
    """Reads of all outputs, those of tiles that stick out too: masks ask where the input ends, not the output."""
    return sum(len(axis.sees(output)) for output in range(axis.tiles * axis.tile))


@functools.cache
def distinct(axis: Axis) -> int:
    """Places that tiles read, each tile's once."""
    starts = range(0, axis.tiles * axis.tile, axis.tile)
    return sum(len(set().union(*(axis.sees(start + i) for i in range(axis.tile)))) for start in starts)


@functools.cache
def distinct_in_runs(rows: Axis, columns: Axis, run: int) -> int:
    """Pixels that programs read whose outputs are `run` neighbours in the order of memory, each program's once."""
    masks = [sum(1 << place for place in columns.sees(column)) for column in range(columns.tiles)]
    seen: dict[tuple[int, int], int] = {}  # by program and row of the input, a bit for each column
    for pixel in range(rows.tiles * columns.tiles):
        row, column = divmod(pixel, columns.tiles)
        for place in rows.sees(row):
            key = pixel // run, place
            seen[key] = seen.get(key, 0) | masks[column]
    return sum(mask.bit_count() for mask in seen.values())


class Window(NamedTuple):
    """The part that the two depthwise kernels share."""

    rows: Axis
    columns: Axis
    pixels: int  # of an image's output
    rounds: int  # of the loop over taps

    @classmethod
    def of(cls, launch: Launch) -> Window:
        c, s = launch.constants, launch.sizes
        axes = [
            Axis(s[size], ceil(s[f"out_{size}"], tile), tile, c["KERNEL"], c["STRIDE"], s[before], c["DILATION"])
            for size, tile, before in (("height", c["TILE_H"], "top"), ("width", c["TILE_W"], "left"))
        ]
        return cls(*axes, s["out_height"] * s["out_width"], ceil(c["KERNEL"] ** 2, c["UNROLL"]))

    @property
    def tiles(self) -> int:
        return self.rows.tiles * self.columns.tiles

    @property
    def reads(self) -> int:
        return count_reads(self.rows) * count_reads(self.columns)

    @property
    def halo(self) -> float:
        return self._distinct / (self.rows.size * self.columns.size)

    @property
    def repeated(self) -> int:
        """Reads of pixels that their program has read before."""
        return self.reads - self._distinct

    @property
    def _distinct(self) -> int:
        return distinct(self.rows) * distinct(self.columns)

    def fmas(self, channels: int) -> int:
        """Of one program."""
        return self.rows.kernel**2 * self.rows.tile * self.columns.tile * channels
