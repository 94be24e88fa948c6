"""The stages at the network's ends: stem, last convolution and its mean, linear layers: csrc/network_ends.cuh."""

from __future__ import annotations

import functools
from typing import NamedTuple

from torch import Tensor

from mbv3fast.cluster.chunks import Chunks, in_eights, linear_bytes, matrix_bytes, padded, pitch_of, pitched
from mbv3fast.cluster.memory import Memory, floats
from mbv3fast.cluster.parts import STEM_CHANNELS, Part, Parts, UncutError
from mbv3fast.cluster.table import LINEAR, MEAN, STEM, Map, Stage
from mbv3fast.cluster.tiling import best_tiling
from mbv3fast.cluster.windows import steps_of

_WINDOW = 3  # rows and columns of the stem's


def add_stem(stem: Part, size: tuple[int, int], memory: Memory, chunks: Chunks) -> Stage:
    """Each block's rows of the stem's output, whose weights go to `chunks`. Raises UncutError where they don't fit."""
    weight, out = stem["weight"], memory.maps[0]
    padding = stem.shape(size).padding
    outputs, taps = -(-len(weight) // 16) * 16, _WINDOW * 4 * STEM_CHANNELS
    chunks.add(matrix_bytes(outputs, taps), 1, lambda: [_stem_weights(stem, outputs, taps)])
    width = 2 * out.width + 2  # even, so that rows begin at 16 bytes
    rows = 2 * (out.rows + out.above + out.below) + 1
    tile_bytes = 2 * rows * width * STEM_CHANNELS
    (tile,) = memory.place([tile_bytes], out)
    return Stage(
        kind=STEM,
        rows=memory.rows_of(0),
        input=Map(height=size[0], width=size[1], channels=weight.shape[1]),
        output=out,
        kernel=_WINDOW,
        stride=stem.stride,
        top=padding[2],
        left=padding[0],
        activation=stem.activation(),
        expanded=tile,
        expanded_pitch=STEM_CHANNELS,
        expanded_width=width,
    )


def _stem_weights(stem: Part, outputs: int, taps: int) -> list[Tensor]:
    """A row of a window is four pixels of four channels, of which those behind the last are zero."""
    weight = stem["weight"]
    rows = weight.new_zeros(len(weight), _WINDOW, 4, STEM_CHANNELS)
    rows[:, :, :_WINDOW, : weight.shape[1]] = weight.permute(0, 2, 3, 1)
    return [pitched(rows.flatten(1), outputs, taps), padded(stem["bias"], 0, outputs)]


class _Layer(NamedTuple):
    """A linear layer behind the mean: weight [outputs, inputs]."""

    weight: Tensor
    bias: Tensor
    activation: int


def add_ends(parts: Parts, memory: Memory, chunks: Chunks) -> list[Stage]:
    """Last convolution, mean and linear layers, whose weights go to `chunks`."""
    last = parts.last
    layers = [_Layer(last["linear_weight"], last["linear_bias"], last.activation("linear_activation"))]
    layers += [_Layer(linear["weight"], linear["bias"], linear.activation()) for linear in parts.linears]
    mean = _mean(last, memory)
    tile_bytes = 2 * mean.input.height * mean.input.width * mean.expanded_pitch
    vectors = [mean.outputs, *(len(layer.weight) for layer in layers[:-1]), 0]  # the last one's go to memory
    mean.expanded, *places = memory.place([tile_bytes, *map(floats, vectors)], mean.input)
    mean.squeeze.means = places[0]
    _add_mean_chunks(mean, last, memory.cut.blocks, chunks)
    stages = [mean]
    for layer, source, target in zip(layers, places, places[1:], strict=False):
        stages.append(_linear(layer, memory, chunks, last=layer is layers[-1]))
        stages[-1].squeeze.means, stages[-1].squeeze.hidden = source, target
    return stages


def _mean(last: Part, memory: Memory) -> Stage:
    source, outputs = memory.maps[-1], in_eights(len(last["weight"]))
    own = -(-outputs // (16 * memory.cut.blocks)) * 16
    row = matrix_bytes(1, source.channels)
    step = next((step for step in steps_of(own) if step * row <= memory.cut.slot), 0)
    if not step:
        raise UncutError(f"{last.name} has {source.channels} inputs, of which 16 rows are larger than a slot")
    stage = Stage(
        kind=MEAN,
        group_bits=memory.cut.blocks.bit_length() - 1,
        rows=source.height,
        expand_tiles=best_tiling(source.height * source.width, step),
        input=source,
        output=source,
        kernel=1,
        stride=1,
        expands=True,
        expand_activation=last.activation(),
        channels=-(-own // step) * step,
        step=step,
        band=source.height,
        outputs=outputs,
        expanded_pitch=pitch_of(step),
        expanded_width=source.width,
    )
    stage.squeeze.per_pixel = 1 / (source.height * source.width)
    return stage


def _add_mean_chunks(stage: Stage, last: Part, blocks: int, chunks: Chunks) -> None:
    own, step, inputs = stage.channels, stage.step, stage.input.channels
    slices = functools.partial(_slices, last.matrix("weight"), last["bias"], blocks, own, step, pitch_of(inputs))
    for first in range(0, own, step):
        chunks.add(matrix_bytes(step, inputs), blocks, functools.partial(slices, first))


def _linear(layer: _Layer, memory: Memory, chunks: Chunks, last: bool) -> Stage:
    outputs, inputs, blocks = len(layer.weight), in_eights(layer.weight.shape[1]), memory.cut.blocks
    outputs = outputs if last else in_eights(outputs)
    own = -(-outputs // blocks)
    most = (memory.cut.slot - 32) // (2 * inputs + 4)  # less what rounding to 16 bytes takes
    if not most:
        raise UncutError(f"a linear layer of {inputs} inputs has rows that are larger than a slot")
    count = -(-own // most)
    step = -(-own // count)
    slices = functools.partial(_slices, layer.weight, layer.bias, blocks, own, step, inputs)
    for first in range(0, count * step, step):
        chunks.add(linear_bytes(step, inputs), blocks, functools.partial(slices, first))
    return Stage(
        kind=LINEAR,
        channels=own,
        step=step,
        inputs=inputs,
        outputs=outputs,
        chunks=count,
        activation=layer.activation,
    )


def _slices(
    weight: Tensor, bias: Tensor, blocks: int, own: int, step: int, width: int, first: int
) -> list[list[Tensor]]:
    """Of each block, which has `own` rows, those from `first` on, a step of them, `width` wide."""
    some = slice(first, first + step)
    weights = padded(weight, blocks * own, width).view(blocks, own, width)[:, some]
    biases = padded(bias, 0, blocks * own).view(blocks, own)[:, some]
    return [[padded(w, step, width), padded(b, 0, step)] for w, b in zip(weights, biases, strict=True)]
