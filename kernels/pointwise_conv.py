"""1x1 convolution as a matrix product over pixels, with everything around it that needs no pass of its own."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mbv3fast.kernels._common import activate, add_up, begin, dot, launch, narrow
from mbv3fast.kernels.configs import Config


@triton.jit(do_not_specialize=["rows", "pixels"])
def _pointwise_conv_kernel(
    x,  # [rows, K]
    weight,  # [N, K]
    bias,  # [N]
    residual,  # [rows, N] or None
    scale,  # [images, K] float32 or None
    out,  # [rows, N] or None
    pool,  # [images, tiles of an image, N] float32 or None
    rows,
    pixels,
    K: tl.constexpr,
    N: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    tile = (program // tiles_n).to(tl.int64)  # neighbours share the rows of x
    n = program % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if (pool is None) and (scale is None):
        row = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        inside = row < rows
    else:  # tiles that end with their image, so that they have one scale, and their sum is one image's
        tiles = tl.cdiv(pixels, BLOCK_M)
        image = tile // tiles
        pixel = tile % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
        row = image * pixels + pixel
        inside = pixel < pixels
    offset = tl.load(bias + n, n < N, 0.0)
    begin(PDL)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = tl.load(x + row[:, None] * K + k[None, :], inside[:, None] & (k < K)[None, :], 0.0)
        if scale is not None:
            factor = tl.load(scale + image * K + k, k < K, 0.0)
            a = narrow(a.to(tl.float32) * factor[None, :], x.dtype.element_ty)
        b = tl.load(weight + n[None, :] * K + k[:, None], (n < N)[None, :] & (k < K)[:, None], 0.0)
        acc = dot(a, b, acc, TF32)
    acc = activate(acc + offset[None, :], ACTIVATION)
    wanted = inside[:, None] & (n < N)[None, :]
    place = row[:, None] * N + n[None, :]
    if residual is not None:
        acc += tl.load(residual + place, wanted, 0.0).to(tl.float32)
    if out is not None:
        tl.store(out + place, narrow(acc, out.dtype.element_ty), wanted)
    if pool is not None:
        tl.store(pool + tile * N + n, add_up(tl.where(wanted, acc, 0.0), 0), n < N)


def count_tiles(pixels: int, config: Config) -> int:
    """Tiles of each image where they end with it: where it has a scale, or its sums are wanted."""
    return triton.cdiv(pixels, config["BLOCK_M"])


def pointwise_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    rows: int,
    pixels: int,
    residual: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    out: torch.Tensor | None,
    pool: torch.Tensor | None = None,
    activation: str | None,
    config: Config,
    tf32: bool = False,
    pdl: bool = False,
) -> None:
    """out = activation((x * scale) @ weight.T + bias) + residual, and its sums over pixels in `pool`.

    x: `rows` pixels, `pixels` an image, of K contiguous channels. weight [N, K], residual and out [rows, N] of its
    dtype, bias [N] of it or float32. scale: [images, K] float32. pool: [images, count_tiles, N] float32, the sums over
    each tile's pixels of what `out` would hold, unrounded.
    """
    outputs, inputs = weight.shape[:2]
    tiles = triton.cdiv(rows, config["BLOCK_M"])
    if scale is not None or pool is not None:
        tiles = rows // pixels * count_tiles(pixels, config)
    launch(
        _pointwise_conv_kernel,
        tiles * triton.cdiv(outputs, config["BLOCK_N"]),
        (x, weight, bias, residual, scale),
        (out, pool),
        (rows, pixels),
        K=inputs,
        N=outputs,
        ACTIVATION=activation,
        TF32=tf32,
        config=config,
        pdl=pdl,
    )
