"""Squeeze-excite within a stage: csrc/network_squeeze.cuh."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from mbv3fast.cluster.chunks import Chunks, linear_bytes, padded
from mbv3fast.cluster.memory import Cut, floats
from mbv3fast.cluster.parts import Block, UncutError
from mbv3fast.cluster.table import Squeeze, Stage

_ALONE = 16 * 1024  # bytes of a layer that each block reads whole, rather than wait for the others


def _is_alone(stage: Stage, block: Block) -> bool:
    """Whether each block computes the layers whole."""
    return stage.sharing == 1 and 2 * block.squeezed * stage.channels <= _ALONE


def _slice(stage: Stage, block: Block, blocks: int) -> int:
    """Channels whose means a block has."""
    alone = _is_alone(stage, block) or stage.sharing == blocks
    return stage.channels if alone else slice_of(stage.sharing * stage.channels, blocks)


def vector_bytes(stage: Stage, block: Block, blocks: int) -> list[int]:
    """Of the sums over pixels, what each block tells of hidden units, means, hidden units and scale."""
    if not block.squeezed:
        return []
    own, groups = _slice(stage, block, blocks), blocks // stage.sharing
    parts, told = (groups * own if groups > 1 else 0), (0 if _is_alone(stage, block) else blocks * block.squeezed)
    return [floats(count) for count in (parts, told, own, block.squeezed, stage.channels)]


def slice_of(channels: int, blocks: int) -> int:
    """Of all channels those of each of so many blocks, in eights."""
    return -(-channels // (8 * blocks)) * 8


def set_squeeze(stage: Stage, block: Block, cut: Cut, places: list[int]) -> None:
    """What a stage of `block` says of squeeze-excite, whose vectors lie at `places`."""
    if not block.squeezed:
        return
    own = _slice(stage, block, cut.blocks)
    units = min(block.squeezed, cut.slot // (2 * own + 4) // 8 * 8)
    rows = min(own, cut.slot // (2 * block.squeezed + 4) // 8 * 8)
    if not units or not rows:
        raise UncutError("squeeze-excite has rows that are larger than a slot")
    parts, told, means, hidden, scale = places
    stage.squeeze = Squeeze(
        squeezed=block.squeezed,
        activation=block.activation("squeeze_activation"),
        alone=_is_alone(stage, block),
        slice=own,
        units=units,
        rows=rows,
        parts=parts,
        told=told,
        means=means,
        hidden=hidden,
        scale=scale,
        per_pixel=1 / (stage.output.height * stage.output.width),
    )


def add_excite(stage: Stage, block: Block, blocks: int, chunks: Chunks) -> None:
    """Of each block the columns of the first layer and the rows of the second that its channels have."""
    squeeze, squeezed, own = stage.squeeze, block.squeezed, stage.squeeze.slice
    shares = 1 if squeeze.alone else blocks
    for count, rows, columns, layer in (
        (squeezed, squeeze.units, own, functools.partial(_fc1, block, own, shares)),
        (own, squeeze.rows, squeezed, functools.partial(_fc2, block, own, shares)),
    ):
        for first in range(0, count, rows):
            size = linear_bytes(min(rows, count - first), columns)
            chunks.add(size, shares, functools.partial(_rows, layer, first, rows))


_Layer = tuple[Sequence[Tensor], Sequence[Tensor]]  # of each block its matrix and its biases


def _rows(layer: Callable[[], _Layer], first: int, rows: int) -> list[list[Tensor]]:
    some = slice(first, first + rows)
    return [[matrix[some], bias[some]] for matrix, bias in zip(*layer(), strict=True)]


def _fc1(block: Block, own: int, shares: int) -> _Layer:
    """Columns of the first layer; the biases are one block's, since what blocks make is added up."""
    bias = padded(block["fc1_bias"], 0, block.squeezed)
    matrices = padded(block["fc1_weight"], block.squeezed, shares * own).split(own, 1)
    return matrices, [bias, *[torch.zeros_like(bias)] * (shares - 1)]


def _fc2(block: Block, own: int, shares: int) -> _Layer:
    """Rows of the second."""
    matrix = padded(block["fc2_weight"], shares * own, block.squeezed)
    return matrix.split(own), padded(block["fc2_bias"], 0, shares * own).split(own)
