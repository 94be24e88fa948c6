"""Stages whose blocks, all or those of a group, have slices of the expanded channels: csrc/network_residual.cuh."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from torch import Tensor

from mbv3fast.cluster.block import new_stage, step_bytes, step_weights, steps_of, tile_bytes, with_way
from mbv3fast.cluster.chunks import Chunks, padded, pitch_of, pitched
from mbv3fast.cluster.excite import add_excite, slice_of, vector_bytes
from mbv3fast.cluster.memory import Memory
from mbv3fast.cluster.parts import Block, UncutError
from mbv3fast.cluster.placed import best_placed
from mbv3fast.cluster.table import Stage


def add_channels(block: Block, index: int, memory: Memory, chunks: Chunks) -> Stage:
    """The stage of block `index`, whose weights go to `chunks`. Raises UncutError where it doesn't fit."""
    stage = new_stage(block, index, memory)
    if not stage.expands:
        raise UncutError(f"{block.name} expands nothing, so that blocks have no channels to share")
    stage.band, stage.pixels = stage.rows, -(-stage.rows * stage.output.width // stage.sharing)
    ways = (with_way(stage, way) for way in _ways(stage, block, memory.cut.slot))
    stage = best_placed(ways, block, memory, _lengths)
    _add_chunks(stage, block, memory.cut.blocks, chunks)
    return stage


def _ways(stage: Stage, block: Block, slot: int) -> Iterator[dict[str, int]]:
    """All ways to go through the channels of a block of the cluster."""
    own = slice_of(block.channels, stage.sharing)
    for step in steps_of(own):
        channels = -(-own // step) * step
        projected = min(stage.output.channels, slot // (32 * pitch_of(channels)) * 16)
        if step_bytes(stage, step) <= slot and projected > 0:
            yield {"step": step, "channels": channels, "projected": projected}


def _lengths(stage: Stage, block: Block, blocks: int) -> list[int]:
    """Of the tile, the windowed pixels, the projected sums, and squeeze-excite's vectors."""
    pixels = stage.rows * stage.output.width
    buffers = [tile_bytes(stage, stage.band, stage.step), 2 * pixels * pitch_of(stage.channels)]
    sums = 4 * stage.sharing * stage.pixels * stage.output.channels
    return [*buffers, sums, *vector_bytes(stage, block, blocks)]


def _add_chunks(stage: Stage, block: Block, blocks: int, chunks: Chunks) -> None:
    own, outputs = stage.channels, stage.output.channels
    everything = stage.sharing * own

    def steps(step: int) -> list[list[Tensor]]:
        return [step_weights(stage, block, first + step) for first in range(0, everything, own)]

    def projections(first: int) -> list[list[Tensor]]:
        weight = padded(block.matrix("project_weight"), outputs, everything)[first : first + stage.projected]
        return [[pitched(matrix, len(matrix), own)] for matrix in weight.split(own, 1)]

    for step in range(0, own, stage.step):
        chunks.add_slices(step_bytes(stage, stage.step), stage.sharing, functools.partial(steps, step))
    if block.squeezed:
        add_excite(stage, block, blocks, chunks)
    for first in range(0, outputs, stage.projected):
        size = 2 * min(stage.projected, outputs - first) * pitch_of(own)
        chunks.add_slices(size, stage.sharing, functools.partial(projections, first))
    chunks.add(4 * outputs, lambda: [block["project_bias"]])
