"""Stages whose blocks have rows of the image: csrc/network_rows.cuh."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from mbv3fast.cluster.block import divided, new_stage, set_buffers, step_bytes, step_weights, tile_bytes
from mbv3fast.cluster.chunks import Chunks, matrix_bytes, padded, pitch_of, pitched
from mbv3fast.cluster.excite import add_excite, set_squeeze, vector_bytes
from mbv3fast.cluster.memory import Cut, Memory
from mbv3fast.cluster.parts import Block, UncutError
from mbv3fast.cluster.table import ROWS, Stage

_MOST_STEPS = 64


class _Way(NamedTuple):
    """How a stage goes through its rows and channels, as Stage has it."""

    band: int
    step: int
    channels: int
    bound: bool
    projected: int


def add_rows(block: Block, index: int, memory: Memory, chunks: Chunks) -> Stage:
    """The stage of block `index`, whose weights go to `chunks`. Raises UncutError where it doesn't fit."""
    stage = new_stage(ROWS, block, memory.maps[index], memory.maps[index + 1])
    stage.rows = memory.rows_of(index + 1)
    reason = "has chunks of weights that are larger than a slot"
    for way in _ways(stage, block, memory.cut.slot):
        try:
            places = memory.place(_lengths(stage, block, way, memory.cut), stage.input, stage.output)
        except UncutError as uncut:
            reason = str(uncut)
            continue
        for name, value in way._asdict().items():
            setattr(stage, name, value)
        set_buffers(stage, places[:2])
        set_squeeze(stage, block, memory.cut.blocks, places[2:])
        _add_chunks(stage, block, memory.cut, chunks)
        return stage
    raise UncutError(f"{block.name}: {reason}")


def _ways(stage: Stage, block: Block, slot: int) -> Iterator[_Way]:
    """All there are, the best first: few bands, then few steps."""
    outputs, excites = stage.output.channels, block.squeezed > 0
    for band in range(stage.rows, 0, -1):
        for steps in range(1, _MOST_STEPS):
            step, channels = divided(block.channels, steps)
            row = matrix_bytes(1, channels)  # of an output
            all_steps = channels // step * step_bytes(stage, step)
            bound = all_steps + (0 if excites else -(-outputs // 16) * 16 * row) <= slot
            projected = outputs if bound and not excites else min(outputs, slot // (16 * row) * 16)
            unbound = band == stage.rows and step_bytes(stage, step) <= slot
            if projected > 0 and (bound or unbound):
                yield _Way(band, step, channels, bound, projected)
            if step == 16:
                break


def _lengths(stage: Stage, block: Block, way: _Way, cut: Cut) -> list[int]:
    """Of the tile, the windowed pixels, and squeeze-excite's vectors."""
    rows = way.band if way.bound and not block.squeezed else stage.rows
    buffers = [tile_bytes(stage, way.band, way.step), 2 * rows * stage.output.width * pitch_of(way.channels)]
    return [*buffers, *vector_bytes(ROWS, block, way.channels, cut.blocks)]


def _add_chunks(stage: Stage, block: Block, cut: Cut, chunks: Chunks) -> None:
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
        add_excite(stage, block, cut.blocks, cut.slot, chunks)
    for first in projections:
        chunks.add(_projection_bytes(stage, first), functools.partial(projection, first))


def _projection_bytes(stage: Stage, first: int) -> int:
    outputs = min(stage.projected, stage.output.channels - first)
    return matrix_bytes(-(-outputs // 16) * 16, stage.channels)


def _projection(stage: Stage, block: Block, first: int) -> list[Tensor]:
    """Of outputs from `first` on: the matrix and its bias, rows in sixteens."""
    count = min(stage.projected, stage.output.channels - first)
    some, rows = slice(first, first + count), -(-count // 16) * 16
    matrix = pitched(block.matrix("project_weight")[some], rows, stage.channels)
    return [matrix, padded(block["project_bias"][some], 0, rows)]
