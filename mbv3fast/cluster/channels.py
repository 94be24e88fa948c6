"""Stages whose blocks have slices of the expanded channels: csrc/network_channels.cuh."""

from __future__ import annotations

import functools

from torch import Tensor

from mbv3fast.cluster.block import divided, new_stage, set_buffers, step_bytes, step_weights, tile_bytes
from mbv3fast.cluster.chunks import Chunks, padded, pitch_of, pitched
from mbv3fast.cluster.excite import add_excite, set_squeeze, vector_bytes
from mbv3fast.cluster.memory import Cut, Memory
from mbv3fast.cluster.parts import Block, UncutError
from mbv3fast.cluster.table import CHANNELS, Stage

_MOST_STEPS = 8


def add_channels(block: Block, index: int, memory: Memory, chunks: Chunks) -> Stage:
    """The stage of block `index`, whose weights go to `chunks`. Raises UncutError where it doesn't fit."""
    stage = new_stage(CHANNELS, block, memory.maps[index], memory.maps[index + 1])
    if not stage.expands:
        raise UncutError(f"{block.name} expands nothing, so that blocks have no channels to share")
    blocks, slot, pixels = memory.cut.blocks, memory.cut.slot, stage.output.height * stage.output.width
    own = -(-block.channels // (8 * blocks)) * 8
    stage.band, stage.pixels = stage.output.height, -(-pixels // blocks)
    reason = "has chunks of weights that are larger than a slot"
    for steps in range(1, _MOST_STEPS):
        stage.step, stage.channels = divided(own, steps)
        stage.projected = min(stage.output.channels, slot // (32 * pitch_of(stage.channels)) * 16)
        if step_bytes(stage, stage.step) > slot or stage.projected == 0:
            continue
        try:
            places = memory.place(_lengths(stage, block, memory.cut), stage.input, stage.output)
        except UncutError as uncut:
            reason = str(uncut)
            continue
        stage.sums = places.pop()
        set_buffers(stage, places[:2])
        set_squeeze(stage, block, blocks, places[2:])
        _add_chunks(stage, block, memory.cut, chunks)
        return stage
    raise UncutError(f"{block.name}: {reason}")


def _lengths(stage: Stage, block: Block, cut: Cut) -> list[int]:
    """Of the tile, the windowed pixels, squeeze-excite's vectors, the projected sums."""
    pixels = stage.output.height * stage.output.width
    buffers = [tile_bytes(stage, stage.band, stage.step), 2 * pixels * pitch_of(stage.channels)]
    vectors = vector_bytes(CHANNELS, block, stage.channels, cut.blocks)
    return [*buffers, *vectors, 4 * cut.blocks * stage.pixels * stage.output.channels]


def _add_chunks(stage: Stage, block: Block, cut: Cut, chunks: Chunks) -> None:
    own, outputs = stage.channels, stage.output.channels
    everything = cut.blocks * own

    def steps(step: int) -> list[list[Tensor]]:
        return [step_weights(stage, block, first + step) for first in range(0, everything, own)]

    def projections(first: int, rows: int) -> list[list[Tensor]]:
        weight = padded(block.matrix("project_weight"), outputs, everything)[first : first + stage.projected]
        return [[pitched(matrix, rows, own)] for matrix in weight.split(own, 1)]

    for step in range(0, own, stage.step):
        chunks.add_slices(step_bytes(stage, stage.step), functools.partial(steps, step))
    if block.squeezed:
        add_excite(stage, block, cut.blocks, cut.slot, chunks)
    for first in range(0, outputs, stage.projected):
        rows = -(-min(stage.projected, outputs - first) // 16) * 16
        chunks.add_slices(2 * rows * pitch_of(own), functools.partial(projections, first, rows))
    chunks.add(4 * outputs, lambda: [block["project_bias"]])
