"""An inverted residual until it is projected: its tile, and the weights of a step: csrc/network_windows.cuh."""

from __future__ import annotations

from torch import Tensor

from mbv3fast.cluster.chunks import matrix_bytes, padded, pitch_of, pitched
from mbv3fast.cluster.memory import Memory
from mbv3fast.cluster.parts import Block
from mbv3fast.cluster.table import BLOCK, Stage

STRIP = 7  # pixels of a row that a thread's windows are of, as csrc/network_windows.cuh has them


def new_stage(block: Block, index: int, memory: Memory) -> Stage:
    """With all that follows from block `index` and its maps."""
    source, target = memory.maps[index], memory.maps[index + 1]
    padding = block.shape((source.height, source.width)).padding
    expands = "expand_weight" in block
    return Stage(
        kind=BLOCK,
        group_bits=memory.cut.sharing[index].bit_length() - 1,
        rows=memory.rows_of(index + 1),
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


def tile_bytes(stage: Stage) -> int:
    """Of the expanded channels of a step under the windows of a band."""
    return 2 * ((stage.band - 1) * stage.stride + stage.kernel) * tile_width(stage) * pitch_of(stage.step)


def tile_width(stage: Stage) -> int:
    """Columns under the windows of whole strips; no fewer than the image and its border on the left."""
    strips = -(-stage.output.width // STRIP)
    return max((strips * STRIP - 1) * stage.stride + stage.kernel, stage.left + stage.input.width)


def steps_of(channels: int) -> list[int]:
    """Channels of a step, in sixteens, for each number of steps."""
    return sorted({-(-channels // (16 * steps)) * 16 for steps in range(1, channels // 16 + 2)}, reverse=True)


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
