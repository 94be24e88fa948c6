"""The tiles of `inverted_residual` that are compiled, and what a block of each takes of a multiprocessor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from mbv3fast.cuda.launch import Tile

SHARED = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}  # KB that a block may have
_SHARED_OF_CHIP = {75: 64, 80: 164, 86: 100, 87: 164, 89: 100, 90: 228, 100: 228, 120: 100}  # KB a multiprocessor has
_RESERVED = 1024  # bytes of a block's shared memory that are CUDA's own
_THREADS = 128  # of a block of `inverted_residual`
PRODUCTS, SUMS = 400, 45  # multiply-adds a cycle of a multiprocessor that its tensor and CUDA cores reach


@dataclass(frozen=True)
class CompiledTile:
    """A line of csrc/inverted_residual_tiles.inc. outputs: the most that it projects to, 0 where it doesn't."""

    kernel: int
    stride: int
    activation: str
    height: int
    width: int
    strip: tuple[int, int]
    step: int
    outputs: int
    expands: bool

    def fits(self, kernel: int, stride: int, activation: str | None, outputs: int, expands: bool) -> bool:
        same = (self.kernel, self.stride, self.activation, self.expands) == (kernel, stride, activation, expands)
        return same and (0 < outputs <= self.outputs if outputs else self.outputs == 0)

    def tile(self, splits: int) -> Tile:
        """As a launch has it."""
        return {"tile_height": self.height, "tile_width": self.width, "step": self.step, "splits": splits}

    @property
    def window(self) -> tuple[int, int]:
        """Input pixels of a tile."""
        height, width = ((size - 1) * self.stride + self.kernel for size in (self.height, self.width))
        return height, width

    def count(self, out_height: int, out_width: int) -> int:
        """Tiles of an image."""
        return ceil(out_height / self.height) * ceil(out_width / self.width)

    def shared_bytes(self, inputs: int) -> int:
        """As `Layout` of csrc/inverted_residual_block.cuh has it."""
        height, width = self.window
        pitch, input_pitch, rows = _pitch(self.step), _pitch(inputs), _round_up(self.height * self.width, 16)
        input_rows = _round_up(height * width, 16 if self.step >= 64 else 32)
        columns = _round_up(self.outputs, 16 * (4 // min(4, 1 if rows < 32 else 2 if rows < 64 else 4)))
        weights = 2 * (self.kernel**2 * self.step + columns * pitch) + 4 * self.step
        memory = 2 * (height * width + rows) * pitch + 4 * input_rows
        if self.expands:
            weights += 2 * self.step * input_pitch + 4 * self.step
            memory += 2 * input_rows * input_pitch
        if not self.outputs:
            memory += 4 * (_THREADS // (self.step // 2)) * self.step
        before = input_rows * input_pitch if self.expands else height * width * pitch
        staged = 2 * (before + rows * _pitch(self.outputs)) if self.outputs else 0
        return max(memory + 2 * weights, staged)

    def resident(self, inputs: int, capability: int) -> int:
        """Blocks that a multiprocessor's shared memory and registers hold at once."""
        each = self.shared_bytes(inputs) + _RESERVED
        registers = 2 if self.kernel == 5 or self.outputs > 32 else 3  # as kBlocks of csrc/inverted_residual_block.cuh
        return max(1, min(registers, 1024 * _newest(_SHARED_OF_CHIP, capability) // each))

    def cycles(self, inputs: int, steps: int) -> float:
        """Of a multiprocessor for a block's arithmetic."""
        height, width = self.window
        pixels, channels = self.height * self.width, steps * self.step
        products = (height * width * inputs if self.expands else 0) + pixels * self.outputs
        return channels * (products / PRODUCTS + pixels * self.kernel**2 / SUMS)


def _tile(
    kernel: int,
    stride: int,
    activation: str,
    size: tuple[int, int],
    strip: tuple[int, int],
    step: int,
    outputs: int = 0,
    expands: bool = True,
) -> CompiledTile:
    return CompiledTile(kernel, stride, activation, *size, strip, step, outputs, expands)


TILES = (
    _tile(3, 1, "relu", (14, 14), (2, 7), 16, 16, expands=False),
    _tile(3, 1, "relu", (8, 16), (2, 4), 16, 16, expands=False),
    _tile(3, 2, "relu", (14, 7), (2, 7), 32, 32),
    _tile(3, 2, "relu", (4, 8), (2, 4), 32, 32),
    _tile(3, 1, "relu", (14, 14), (2, 7), 16, 32),
    _tile(3, 1, "relu", (4, 8), (2, 4), 32, 32),
    _tile(3, 2, "hardswish", (14, 7), (2, 7), 32, 80),
    _tile(3, 2, "hardswish", (4, 8), (2, 4), 64, 80),
    _tile(3, 1, "hardswish", (14, 7), (2, 7), 32, 80),
    _tile(3, 1, "hardswish", (4, 8), (2, 4), 64, 80),
    _tile(5, 2, "relu", (14, 14), (2, 7), 16),
    _tile(5, 2, "relu", (4, 8), (2, 4), 32),
    _tile(5, 1, "relu", (14, 14), (2, 7), 32),
    _tile(5, 1, "relu", (4, 8), (2, 4), 32),
    _tile(3, 1, "hardswish", (14, 14), (2, 7), 64),
    _tile(3, 1, "hardswish", (8, 8), (2, 4), 16),
    _tile(5, 2, "hardswish", (7, 7), (1, 7), 64),
    _tile(5, 2, "hardswish", (4, 8), (2, 4), 16),
    _tile(5, 1, "hardswish", (7, 7), (1, 7), 64),
    _tile(5, 1, "hardswish", (4, 8), (2, 4), 32),
    _tile(3, 2, "relu", (14, 14), (2, 7), 16, expands=False),
    _tile(3, 2, "relu", (4, 8), (2, 4), 16, expands=False),
)


def find(tile: Mapping[str, Any], sizes: Mapping[str, int], expands: bool) -> CompiledTile:
    """That of a launch. Raises LookupError where none is compiled."""
    cut = tile["tile_height"], tile["tile_width"], tile["step"]
    geometry = sizes["kernel"], sizes["stride"], tile["ACTIVATION"], sizes["outputs"], expands
    for known in TILES:
        if (known.height, known.width, known.step) == cut and known.fits(*geometry):
            return known
    raise LookupError(f"{cut} for {geometry}: no such tile is compiled")


def shared_limit(capability: int) -> int:
    """Bytes of shared memory that a block may have."""
    return 1024 * _newest(SHARED, capability)


def _newest(table: dict[int, int], capability: int) -> int:
    """Of the newest chip in the table that is not newer."""
    return table[max((known for known in table if known <= capability), default=75)]


def _pitch(columns: int) -> int:
    return (ceil(columns / 8) | 1) * 8


def _round_up(value: int, multiple: int) -> int:
    return ceil(value / multiple) * multiple
