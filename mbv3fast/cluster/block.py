"""What stages of rows and of channels have in common: geometry of the tile of expanded channels, chunks of a block."""

from __future__ import annotations

from torch import Tensor

from mbv3fast.cluster.chunks import matrix_bytes, padded, pitch_of, pitched
from mbv3fast.cluster.parts import Block
from mbv3fast.cluster.table import Map, Stage

STRIP = 7  # pixels of a row that a thread's windows are of, as csrc/network_block.cuh has them


def new_stage(kind: int, block: Block, source: Map, target: Map) -> Stage:
    """With all that follows from the block and its maps."""
    padding = block.shape((source.height, source.width)).padding
    expands = "expand_weight" in block
    return Stage(
        kind=kind,
        input=source,
        output=target,
        kernel=block.kernel,
        stride=block.stride,
        top=padding[2],
        left=padding[0],
        expand_activation=block.activation() if expands else 0,
        activation=block.activation(),
        expands=expands,
        adds_input=block.adds_input,
    )


def tile_bytes(stage: Stage, band: int, step: int) -> int:
    """Of the expanded channels under the windows of a band."""
    return 2 * ((band - 1) * stage.stride + stage.kernel) * tile_width(stage) * pitch_of(step)


def tile_width(stage: Stage) -> int:
    """Columns under the windows of whole strips; no fewer than the image and its border on the left."""
    strips = -(-stage.output.width // STRIP)
    return max((strips * STRIP - 1) * stage.stride + stage.kernel, stage.left + stage.input.width)


def set_buffers(stage: Stage, places: list[int]) -> None:
    """Places of the tile and of the windowed pixels, for the stage's step and channels."""
    stage.expanded, stage.windowed = places
    stage.expanded_pitch, stage.expanded_width = pitch_of(stage.step), tile_width(stage)
    stage.windowed_pitch = pitch_of(stage.channels)


def step_bytes(stage: Stage, step: int) -> int:
    """Of the weights of so many channels, as `step_weights` gives them."""
    expanding = matrix_bytes(step, stage.input.channels) if stage.expands else 0
    return expanding + step * (2 * stage.kernel**2 + 4)


def step_weights(stage: Stage, block: Block, first: int) -> list[Tensor]:
    """Of channels from `first` on: the matrix that expands with its bias, if there is one, the windows with theirs."""
    some, step = slice(first, first + stage.step), stage.step
    taps = block["weight"].flatten(1).T[:, some]
    windows = [padded(taps, len(taps), step), padded(block["bias"][some], 0, step)]
    if not stage.expands:
        return windows
    matrix = pitched(block.matrix("expand_weight")[some], step, stage.input.channels)
    return [matrix, padded(block["expand_bias"][some], 0, step), *windows]


def divided(channels: int, steps: int) -> tuple[int, int]:
    """The channels of a step, in sixteens, and of all steps, so that these are at most so many."""
    step = -(-channels // (16 * steps)) * 16
    return step, -(-channels // step) * step
