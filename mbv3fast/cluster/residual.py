"""Stages that are inverted residuals: csrc/network_residual.cuh."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator

from torch import Tensor

from mbv3fast.cluster.chunks import Chunks, matrix_bytes, padded, pitch_of, pitched
from mbv3fast.cluster.excite import add_excite, set_squeeze, slice_of, vector_bytes
from mbv3fast.cluster.latency import typical_seconds
from mbv3fast.cluster.memory import Memory
from mbv3fast.cluster.parts import Block, UncutError
from mbv3fast.cluster.table import Stage
from mbv3fast.cluster.tiling import best_tiling
from mbv3fast.cluster.windows import new_stage, step_bytes, step_weights, steps_of, tile_bytes, tile_width


def add_block(block: Block, index: int, memory: Memory, chunks: Chunks) -> Stage:
    """The stage of block `index`, whose weights go to `chunks`: of all ways to go through its rows and channels that
    fit, the one that is predicted to be fastest. Raises UncutError where none fits.
    """
    stage = new_stage(block, index, memory)
    if stage.sharing > 1 and not stage.expands:
        raise UncutError(f"{block.name} expands nothing, so that blocks have no channels to share")
    stage.pixels = -(-stage.rows * stage.output.width // stage.sharing)
    found: list[tuple[float, int, Stage]] = []
    reason = "has chunks of weights that are larger than a slot"
    for way in _ways(stage, block, memory.cut.slot):
        try:
            _place(way, block, memory)
        except UncutError as uncut:
            reason = str(uncut)
            continue
        found.append((typical_seconds(way, memory.cut.blocks), memory.taken, way))
    if not found:
        raise UncutError(f"{block.name}: {reason}")
    _, memory.taken, best = min(found, key=lambda one: one[:2])
    _add_chunks(best, block, memory.cut.blocks, chunks)
    return best


def _projects_bands(stage: Stage, block: Block) -> bool:
    """Whether each band is projected before the next one, by weights that all bands have in one chunk."""
    return bool(stage.bound) and not block.squeezed


def _ways(stage: Stage, block: Block, slot: int) -> Iterator[Stage]:
    """Copies with numbers of rows, of channels and of outputs at once. A larger group has one band: its rows are few,
    and it is there for its channels.
    """
    alone, outputs = stage.sharing == 1, stage.output.channels
    own = block.channels if alone else slice_of(block.channels, stage.sharing)
    bands = range(stage.rows, 0, -1) if alone else [stage.rows]
    for band, step in itertools.product(bands, steps_of(own)):
        way = Stage.from_buffer_copy(stage)
        way.band, way.step, way.channels = band, step, -(-own // step) * step
        row = matrix_bytes(1, way.channels)  # of an output
        all_steps = way.channels // step * step_bytes(stage, step)
        way.bound = alone and all_steps + (0 if block.squeezed else outputs * row) <= slot
        way.projected = outputs if _projects_bands(way, block) else min(outputs, slot // (16 * row) * 16)
        if way.projected and (way.bound or (band == stage.rows and step_bytes(stage, step) <= slot)):
            yield way


def _place(stage: Stage, block: Block, memory: Memory) -> None:
    """Sets what follows from a way. Raises UncutError where it doesn't fit."""
    out, blocks = stage.output, memory.cut.blocks
    rows = stage.band if _projects_bands(stage, block) else stage.rows
    lengths = [tile_bytes(stage), 2 * rows * out.width * pitch_of(stage.channels)]
    lengths.append(4 * stage.sharing * stage.pixels * out.channels if stage.sharing > 1 else 0)
    places = memory.place([*lengths, *vector_bytes(stage, block, blocks)], stage.input, out)
    stage.expanded, stage.windowed, stage.sums, *vectors = places
    stage.expanded_pitch, stage.expanded_width = pitch_of(stage.step), tile_width(stage)
    stage.windowed_pitch = pitch_of(stage.channels)
    set_squeeze(stage, block, memory.cut, vectors)
    under = min((stage.band - 1) * stage.stride + stage.kernel, stage.input.height)
    stage.expand_tiles = best_tiling(under * stage.input.width, stage.step)
    stage.project_tiles = best_tiling(min(rows, out.height) * out.width, stage.projected)


def _add_chunks(stage: Stage, block: Block, blocks: int, chunks: Chunks) -> None:
    """In the order in which the kernel takes them."""
    outputs, size = stage.output.channels, step_bytes(stage, stage.step)
    steps, projection = (functools.partial(make, stage, block) for make in (_steps, _projection))
    firsts, by_bands = range(0, stage.channels, stage.step), _projects_bands(stage, block)
    if stage.bound:
        parts = [functools.partial(steps, first) for first in firsts]
        parts += [functools.partial(projection, 0)] * by_bands
        whole = len(firsts) * size + (_projection_bytes(stage, 0) if by_bands else 0)
        chunks.add(whole, 1, lambda: [[tensor for part in parts for tensor in part()[0]]])
    else:
        for first in firsts:
            chunks.add(size, stage.sharing, functools.partial(steps, first))
    if block.squeezed:
        add_excite(stage, block, blocks, chunks)
    for first in range(0, 0 if by_bands else outputs, stage.projected):
        chunks.add(_projection_bytes(stage, first), stage.sharing, functools.partial(projection, first))
    if stage.sharing > 1:
        chunks.add(4 * outputs, 1, lambda: [[block["project_bias"]]])


def _steps(stage: Stage, block: Block, first: int) -> list[list[Tensor]]:
    """Of each member of a group the weights of its channels from `first` on."""
    return [step_weights(stage, block, member * stage.channels + first) for member in range(stage.sharing)]


def _projection_bytes(stage: Stage, first: int) -> int:
    outputs = min(stage.projected, stage.output.channels - first)
    return matrix_bytes(outputs, stage.channels) if stage.sharing == 1 else 2 * outputs * pitch_of(stage.channels)


def _projection(stage: Stage, block: Block, first: int) -> list[list[Tensor]]:
    """Of each member the columns of outputs from `first` on, and the bias where one has all of them."""
    some, own = slice(first, first + stage.projected), stage.channels
    weight = block.matrix("project_weight")[some]
    columns = padded(weight, len(weight), own * stage.sharing).split(own, 1)
    matrices = [[pitched(matrix, len(matrix), own)] for matrix in columns]
    if stage.sharing == 1:
        matrices[0].append(block["project_bias"][some])
    return matrices
