"""Stages whose blocks have rows of the image: csrc/network_residual.cuh."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from torch import Tensor

from mbv3fast.cluster.block import new_stage, step_bytes, step_weights, steps_of, tile_bytes, with_way
from mbv3fast.cluster.chunks import Chunks, matrix_bytes, pitch_of, pitched
from mbv3fast.cluster.excite import add_excite, vector_bytes
from mbv3fast.cluster.memory import Memory
from mbv3fast.cluster.parts import Block
from mbv3fast.cluster.placed import best_placed
from mbv3fast.cluster.table import Stage


def add_rows(block: Block, index: int, memory: Memory, chunks: Chunks) -> Stage:
    """The stage of block `index`, whose weights go to `chunks`. Raises UncutError where it doesn't fit."""
    stage = new_stage(block, index, memory)
    ways = (with_way(stage, way) for way in _ways(stage, block, memory.cut.slot))
    stage = best_placed(ways, block, memory, _lengths)
    _add_chunks(stage, block, memory.cut.blocks, chunks)
    return stage


def _ways(stage: Stage, block: Block, slot: int) -> Iterator[dict[str, int]]:
    """All ways to go through the rows and channels of a block of the cluster."""
    outputs, excites = stage.output.channels, block.squeezed > 0
    for band in range(stage.rows, 0, -1):
        for step in steps_of(block.channels):
            channels = -(-block.channels // step) * step
            row = matrix_bytes(1, channels)  # of an output
            all_steps = channels // step * step_bytes(stage, step)
            bound = all_steps + (0 if excites else outputs * row) <= slot
            projected = outputs if bound and not excites else min(outputs, slot // (16 * row) * 16)
            unbound = band == stage.rows and step_bytes(stage, step) <= slot
            if projected > 0 and (bound or unbound):
                way = {"band": band, "step": step, "channels": channels, "bound": bound, "projected": projected}
                yield way


def _lengths(stage: Stage, block: Block, blocks: int) -> list[int]:
    """Of the tile, the windowed pixels, no sums of several blocks, and squeeze-excite's vectors."""
    rows = stage.band if stage.bound and not block.squeezed else stage.rows
    buffers = [tile_bytes(stage, stage.band, stage.step), 2 * rows * stage.output.width * pitch_of(stage.channels)]
    return [*buffers, 0, *vector_bytes(stage, block, blocks)]


def _add_chunks(stage: Stage, block: Block, blocks: int, chunks: Chunks) -> None:
    steps, size = range(0, stage.channels, stage.step), step_bytes(stage, stage.step)
    projections = range(0, stage.output.channels, stage.projected)
    step, projection = (functools.partial(make, stage, block) for make in (step_weights, _projection))
    if stage.bound:
        projects = not block.squeezed
        whole = len(steps) * size + (_projection_bytes(stage, 0) if projects else 0)
        chunks.add(whole, lambda: [t for first in steps for t in step(first)] + (projection(0) if projects else []))
    else:
        for first in steps:
            chunks.add(size, functools.partial(step, first))
    if stage.bound and not block.squeezed:
        return
    if block.squeezed:
        add_excite(stage, block, blocks, chunks)
    for first in projections:
        chunks.add(_projection_bytes(stage, first), functools.partial(projection, first))


def _projection_bytes(stage: Stage, first: int) -> int:
    outputs = min(stage.projected, stage.output.channels - first)
    return matrix_bytes(outputs, stage.channels)


def _projection(stage: Stage, block: Block, first: int) -> list[Tensor]:
    """Of outputs from `first` on: the matrix and its bias."""
    some = slice(first, first + stage.projected)
    matrix = block.matrix("project_weight")[some]
    return [pitched(matrix, len(matrix), stage.channels), block["project_bias"][some]]
