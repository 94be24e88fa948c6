"""Depthwise convolution, with the squeeze of a following squeeze-excite in its epilogue."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mbv3fast.kernels._common import activate, add_up, begin, launch, narrow
from mbv3fast.kernels.configs import Config
from mbv3fast.kernels.squeeze_excite import squeeze_slice


@triton.jit
def tile_pixels(tile, tiles_w, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Rows and columns of a tile's pixels, of an output that is `tiles_w` tiles wide."""
    pixel = tl.arange(0, TILE_H * TILE_W)
    return tile // tiles_w * TILE_H + pixel // TILE_W, tile % tiles_w * TILE_W + pixel % TILE_W


def count_tiles(out: torch.Tensor, config: Config) -> int:
    """Tiles of each image of `out` [N, H', W', C']."""
    return triton.cdiv(out.shape[1], config["TILE_H"]) * triton.cdiv(out.shape[2], config["TILE_W"])


def count_parts(out: torch.Tensor, config: Config) -> int:
    """Parts of each image's `hidden`: a tile and a block of channels each."""
    return count_tiles(out, config) * triton.cdiv(out.shape[3], config["BLOCK_C"])


@triton.jit
def depthwise_tile(
    x,
    weight,
    c,  # [BLOCK_C] channels
    image,
    row,  # [pixels] of the output
    column,
    height,
    width,
    top,
    left,
    C: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """The sums over the taps, float32 [pixels, BLOCK_C]; zero where the input ends."""
    acc = tl.zeros((row.shape[0], c.shape[0]), tl.float32)
    first = image * height * width
    for tap in tl.range(0, KERNEL * KERNEL, loop_unroll_factor=UNROLL):
        y = row * STRIDE - top + tap // KERNEL * DILATION
        z = column * STRIDE - left + tap % KERNEL * DILATION
        inside = (y >= 0) & (y < height) & (z >= 0) & (z < width)
        place = (first + y * width + z)[:, None] * C + c[None, :]
        value = tl.load(x + place, inside[:, None] & (c < C)[None, :], 0.0)
        factor = tl.load(weight + tap * C + c, c < C, 0.0)
        acc += value.to(tl.float32) * factor.to(tl.float32)[None, :]
    return acc


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "top", "left"])
def _depthwise_conv_kernel(
    x,  # [images, height, width, C]
    weight,  # [KERNEL * KERNEL, C]
    bias,  # [C]
    fc1_weight,  # [S, C] or None
    out,  # [images, out_height, out_width, C]
    pool,  # [images, tiles, C] float32 or None
    hidden,  # [images, tiles * blocks of channels, S] float32 or None
    height,
    width,
    out_height,
    out_width,
    top,
    left,
    C: tl.constexpr,
    S: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    UNROLL: tl.constexpr,
    PDL: tl.constexpr,
):
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tiles_w = tl.cdiv(out_width, TILE_W)
    tiles = tl.cdiv(out_height, TILE_H) * tiles_w
    program = tl.program_id(0)
    block = program % blocks
    tile = program // blocks % tiles
    image = (program // blocks // tiles).to(tl.int64)
    row, column = tile_pixels(tile, tiles_w, TILE_H, TILE_W)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    offset = tl.load(bias + c, c < C, 0.0)
    begin(PDL)
    acc = depthwise_tile(
        x,
        weight,
        c,
        image,
        row,
        column,
        height,
        width,
        top,
        left,
        C,
        KERNEL,
        STRIDE,
        DILATION,
        UNROLL,
    )
    acc = activate(acc + offset[None, :], ACTIVATION)
    inside = ((row < out_height) & (column < out_width))[:, None] & (c < C)[None, :]
    place = (image * out_height * out_width + row * out_width + column)[:, None] * C + c[None, :]
    tl.store(out + place, narrow(acc, out.dtype.element_ty), inside)
    if (pool is not None) or (hidden is not None):
        total = add_up(tl.where(inside, acc, 0.0), 0)
        if pool is not None:
            tl.store(pool + (image * tiles + tile) * C + c, total, c < C)
        if hidden is not None:
            squeeze_slice(hidden, (image * tiles + tile) * blocks + block, fc1_weight, total, c, C, S, BLOCK_S)


def depthwise_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    out: torch.Tensor,
    kernel: int,
    stride: int,
    padding: tuple[int, int, int, int],
    dilation: int = 1,
    activation: str | None,
    pool: torch.Tensor | None = None,
    fc1_weight: torch.Tensor | None = None,
    hidden: torch.Tensor | None = None,
    config: Config,
    pdl: bool = False,
) -> None:
    """out = activation(depthwise convolution of x + bias), its sums in `pool`, fc1 @ its sums in `hidden`.

    x [N, H, W, C], weight [kernel * kernel, C] and out [N, H', W', C] of x's dtype, bias [C] of it or float32.
    padding: zeros at the left, right, top, bottom; those at the right and below are in the size of `out`.
    pool: [N, tiles, C] float32, each tile's sums of what `out` holds, unrounded. hidden: [N, tiles * blocks, S]
    float32: fc1_weight [S, C] times each tile's and block of channels' sums; their sum over the middle axis, over
    the pixels, is fc1 of the mean.
    """
    images, height, width, channels = x.shape
    _, out_height, out_width, _ = out.shape
    launch(
        _depthwise_conv_kernel,
        images * count_parts(out, config),
        (x, weight, bias, fc1_weight),
        (out, pool, hidden),
        (height, width, out_height, out_width, padding[2], padding[0]),
        C=channels,
        S=0 if fc1_weight is None else fc1_weight.shape[0],
        KERNEL=kernel,
        STRIDE=stride,
        DILATION=dilation,
        ACTIVATION=activation,
        config=config,
        pdl=pdl,
    )
