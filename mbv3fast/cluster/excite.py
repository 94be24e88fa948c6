"""Squeeze-excite within a stage: csrc/network_squeeze.cuh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mbv3fast.cluster.chunks import Chunks, linear_bytes, padded
from mbv3fast.cluster.memory import floats
from mbv3fast.cluster.parts import Block, UncutError
from mbv3fast.cluster.table import ROWS, Squeeze, Stage

_ALONE = 16 * 1024  # bytes of a layer that each block reads whole, rather than wait for the others


def is_shared(block: Block, channels: int) -> bool:
    """Whether blocks that have rows of the image share the layers."""
    return 2 * block.squeezed * channels > _ALONE


def vector_bytes(kind: int, block: Block, channels: int, blocks: int) -> list[int]:
    """Of the sums over pixels, what each block tells of hidden units, means, hidden units and scale."""
    if not block.squeezed:
        return []
    in_rows, shared = kind == ROWS, kind != ROWS or is_shared(block, channels)
    own = slice_of(channels, blocks) if in_rows and shared else channels
    parts, told = (blocks * own if in_rows else 0), (blocks * block.squeezed if shared else 0)
    return [floats(count) for count in (parts, told, own, block.squeezed, channels)]


def slice_of(channels: int, blocks: int) -> int:
    """Of all channels those of a block, in eights."""
    return -(-channels // (8 * blocks)) * 8


def set_squeeze(stage: Stage, block: Block, blocks: int, places: list[int]) -> None:
    """What a stage of `block` says of squeeze-excite, whose vectors lie at `places`."""
    if not block.squeezed:
        return
    shared = stage.kind == ROWS and is_shared(block, stage.channels)
    parts, told, means, hidden, scale = places
    stage.squeeze = Squeeze(
        squeezed=block.squeezed,
        activation=block.activation("squeeze_activation"),
        shared=shared,
        slice=slice_of(stage.channels, blocks) if shared else stage.channels,
        parts=parts,
        told=told,
        means=means,
        hidden=hidden,
        scale=scale,
        per_pixel=1 / (stage.output.height * stage.output.width),
    )


def add_excite(stage: Stage, block: Block, blocks: int, slot: int, chunks: Chunks) -> None:
    """Of each block the columns of the first layer and the rows of the second that its channels have."""
    squeeze, squeezed = stage.squeeze, block.squeezed
    own = squeeze.slice
    shares = 1 if stage.kind == ROWS and not squeeze.shared else blocks
    squeeze.units = min(squeezed, slot // (2 * own + 4) // 8 * 8)
    squeeze.rows = min(own, slot // (2 * squeezed + 4) // 8 * 8)
    if not squeeze.units or not squeeze.rows:
        raise UncutError(f"{block.name}: squeeze-excite has rows that are larger than a slot")
    for count, rows, columns, layer in (
        (squeezed, squeeze.units, own, functools.partial(_fc1, block, own, shares)),
        (own, squeeze.rows, squeezed, functools.partial(_fc2, block, own, shares)),
    ):
        for first in range(0, count, rows):
            size = linear_bytes(min(rows, count - first), columns)
            make = functools.partial(_rows, layer, first, rows)
            chunks.add_slices(size, make) if shares > 1 else chunks.add(size, lambda make=make: make()[0])  # type: ignore[misc]


_Layer = tuple[Sequence[Tensor], Sequence[Tensor]]  # of each block its matrix and its biases


def _rows(layer: Callable[[], _Layer], first: int, rows: int) -> list[list[Tensor]]:
    some = slice(first, first + rows)
    return [[matrix[some], bias[some]] for matrix, bias in zip(*layer(), strict=True)]


def _fc1(block: Block, own: int, shares: int) -> _Layer:
    """Columns of the first layer; the biases are one block's, since what blocks make is added up."""
    bias = block["fc1_bias"]
    matrices = padded(block["fc1_weight"], len(bias), shares * own).split(own, 1)
    return matrices, [bias, *[torch.zeros_like(bias)] * (shares - 1)]


def _fc2(block: Block, own: int, shares: int) -> _Layer:
    """Rows of the second."""
    matrix = padded(block["fc2_weight"], shares * own, block.squeezed)
    return matrix.split(own), padded(block["fc2_bias"], 0, shares * own).split(own)
