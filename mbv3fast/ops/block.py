"""The CUDA kernels of a block, from its input to its end or from its depthwise convolution on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mbv3fast.cuda import inverted_residual as kernels
from mbv3fast.cuda.depthwise_conv import count_tiles
from mbv3fast.cuda.launch import Tile, activates, serves
from mbv3fast.cuda.tiles import excites
from mbv3fast.ops.layout import matrix, pixels_first, taps_first
from mbv3fast.ops.op import empty
from mbv3fast.ops.pointwise_conv import run_pointwise_conv
from mbv3fast.ops.spec import conv_shape
from mbv3fast.ops.squeeze_excite import run_excite_pool
from mbv3fast.ops.target import Target


class Conv(NamedTuple):
    """A convolution's weight, and its bias in any dtype."""

    weight: Tensor
    bias: Tensor


class Excite(NamedTuple):
    """The layers of squeeze-excite, what is between them, and what makes a scale of their result."""

    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor
    activation: str | None
    gate: str


def run_block(
    x: Tensor,
    expand: Conv | None,
    depthwise: Conv,
    excite: Excite | None,
    project: Conv,
    residual: Tensor | None,
    *,
    stride: int,
    padding: Sequence[int] | str,
    dilation: int,
    activation: str | None,
    target: Target,
) -> Tensor | None:
    """The block's output, by one launch, or with squeeze-excite by three; None where other kernels are to do it.

    activation: after expanding and after the depthwise convolution. Without `expand` x is what others expand to.
    """
    (outputs, channels), kernel = project.weight.shape[:2], depthwise.weight.shape[3]
    if not target.cuda or dilation != 1 or not serves(x.dtype, x.shape[1], channels, outputs):
        return None
    if excite is not None and not excites(channels, excite.fc1_weight.shape[0]):
        return None
    if excite is not None and not activates(excite.activation, gate=excite.gate):
        return None
    shape = conv_shape((x.shape[2], x.shape[3]), kernel, stride, padding)
    if max(shape.padding[0], shape.padding[2]) >= kernel:
        return None
    tile = target.tile(
        "inverted_residual",
        images=x.shape[0],
        out_height=shape.height,
        out_width=shape.width,
        inputs=x.shape[1],
        channels=channels,
        outputs=0 if excite else outputs,
        kernel=kernel,
        stride=stride,
        activation=activation,
        expands=expand is not None,
        others=target.triton,
    )
    if not tile:
        return None
    out = empty((x.shape[0], channels if excite else outputs, shape.height, shape.width), like=x)
    pool = _sums(out, tile) if excite else None
    source = pixels_first(x)
    added = source if residual is x else residual if residual is None else pixels_first(residual)
    kernels.inverted_residual(
        source,
        expand and matrix(expand.weight),
        expand and expand.bias.float(),
        taps_first(depthwise.weight),
        depthwise.bias.float(),
        None if excite else matrix(project.weight),
        None if excite else project.bias.float(),
        residual=None if excite else added,
        out=out.permute(0, 2, 3, 1),
        pool=pool,
        kernel=kernel,
        stride=stride,
        padding=shape.padding,
        activation=activation,
        tile=tile,
        pdl=target.pdl,
    )
    if excite is None or pool is None:
        return out
    scale = run_excite_pool(pool, *excite[:5], pixels=shape.height * shape.width, target=target)  # all but the gate
    return run_pointwise_conv(out, *project, residual, scale, activation=None, target=target)


def _sums(out: Tensor, tile: Tile) -> Tensor:
    """Uninitialised, those of `out` over its tiles, [N, tiles, C]."""
    images, channels, height, width = out.shape
    return empty((images, count_tiles(height, width, tile), channels), like=out, dtype=torch.float32)
