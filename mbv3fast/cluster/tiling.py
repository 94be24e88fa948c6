"""Tiles of products on tensor cores: which of them a warp computes at once."""

from __future__ import annotations

WARPS = 8  # of a block
_TILINGS = ((1, 1), (1, 2), (2, 1), (2, 2))  # rows and columns of 16, as csrc/network_stage.cuh numbers them


def tiles_of(rows: int, columns: int, tiling: int) -> int:
    """Products of 16 by 16 that are computed for so many rows and columns, those behind the last included."""
    high, wide = _TILINGS[tiling]
    return -(-rows // (16 * high)) * -(-columns // (16 * wide)) * high * wide


def clocks_of(rows: int, columns: int, tiling: int) -> int:
    """Of every 16 that are summed over: each round of all warps reads rows and columns of 512 bytes, 128 a clock."""
    high, wide = _TILINGS[tiling]
    rounds = -(-tiles_of(rows, columns, tiling) // (high * wide * WARPS))
    return rounds * WARPS * (high + wide) * 4


def best_tiling(rows: int, columns: int) -> int:
    return min(range(len(_TILINGS)), key=lambda tiling: (clocks_of(rows, columns, tiling), tiling))
