"""Depthwise convolution and projection in one: the depthwise output never leaves the chip."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mbv3fast.kernels._common import activate, begin, dot, launch, narrow, one_block
from mbv3fast.kernels.configs import Config
from mbv3fast.kernels.depthwise_conv import count_tiles, depthwise_tile, tile_pixels


@triton.jit(do_not_specialize=["height", "width", "out_height", "out_width", "top", "left"])
def _depthwise_project_kernel(
    x,  # [images, height, width, C]
    weight,  # [KERNEL * KERNEL, C]
    bias,  # [C]
    project_weight,  # [N, C]
    project_bias,  # [N]
    residual,  # like out, or None
    out,  # [images, out_height, out_width, N]
    height,
    width,
    out_height,
    out_width,
    top,
    left,
    C: tl.constexpr,
    N: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    DILATION: tl.constexpr,
    ACTIVATION: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNROLL: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    tiles_w = tl.cdiv(out_width, TILE_W)
    tiles = tl.cdiv(out_height, TILE_H) * tiles_w
    program = tl.program_id(0)
    tile = program % tiles
    image = (program // tiles).to(tl.int64)
    row, column = tile_pixels(tile, tiles_w, TILE_H, TILE_W)
    n = tl.arange(0, BLOCK_N)
    project_offset = tl.load(project_bias + n, n < N, 0.0)
    begin(PDL)
    acc = tl.zeros((TILE_H * TILE_W, BLOCK_N), tl.float32)
    for start in range(0, C, BLOCK_C):
        c = start + tl.arange(0, BLOCK_C)
        expanded = depthwise_tile(
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
        expanded = activate(expanded + tl.load(bias + c, c < C, 0.0)[None, :], ACTIVATION)
        b = tl.load(project_weight + n[None, :] * C + c[:, None], (n < N)[None, :] & (c < C)[:, None], 0.0)
        acc = dot(narrow(expanded, x.dtype.element_ty), b, acc, TF32)
    acc += project_offset[None, :]
    inside = ((row < out_height) & (column < out_width))[:, None] & (n < N)[None, :]
    place = (image * out_height * out_width + row * out_width + column)[:, None] * N + n[None, :]
    if residual is not None:
        acc += tl.load(residual + place, inside, 0.0).to(tl.float32)
    tl.store(out + place, narrow(acc, out.dtype.element_ty), inside)


def depthwise_project(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    project_weight: torch.Tensor,
    project_bias: torch.Tensor,
    *,
    residual: torch.Tensor | None = None,
    out: torch.Tensor,
    kernel: int,
    stride: int,
    padding: tuple[int, int, int, int],
    dilation: int = 1,
    activation: str | None,
    config: Config,
    tf32: bool = False,
    pdl: bool = False,
) -> None:
    """out = activation(depthwise convolution of x + bias) @ project_weight.T + project_bias + residual.

    x [N, H, W, C], weight [kernel * kernel, C] and project_weight [C', C] of x's dtype, biases of it or float32,
    residual and out [N, H', W', C'] of x's dtype. padding as in `depthwise_conv`.
    """
    images, height, width, channels = x.shape
    _, out_height, out_width, outputs = out.shape
    launch(
        _depthwise_project_kernel,
        images * count_tiles(out, config),
        (x, weight, bias, project_weight, project_bias, residual),
        (out,),
        (height, width, out_height, out_width, padding[2], padding[0]),
        C=channels,
        N=outputs,
        KERNEL=kernel,
        STRIDE=stride,
        DILATION=dilation,
        ACTIVATION=activation,
        BLOCK_N=one_block(outputs),
        TF32=tf32,
        config=config,
        pdl=pdl,
    )
