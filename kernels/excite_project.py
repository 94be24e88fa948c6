"""1x1 convolution of a scaled input, whose scale each program computes itself: squeeze-excite without a launch."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mbv3fast.kernels._common import begin, dot, launch, narrow
from mbv3fast.kernels.configs import Config
from mbv3fast.kernels.squeeze_excite import excite_slice, hidden_units


@triton.jit(do_not_specialize=["parts", "pixels"])
def _excite_project_kernel(
    x,  # [images, pixels, K]
    hidden,  # [images, parts, S] float32
    fc1_bias,  # [S]
    fc2_weight,  # [K, S]
    fc2_bias,  # [K]
    weight,  # [N, K]
    bias,  # [N]
    residual,  # [images, pixels, N] or None
    out,  # [images, pixels, N]
    parts,
    pixels,
    K: tl.constexpr,
    N: tl.constexpr,
    S: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    tiles = tl.cdiv(pixels, BLOCK_M)  # which end with their image, whose scale they share
    program = tl.program_id(0)
    image = (program // tiles_n // tiles).to(tl.int64)
    pixel = program // tiles_n % tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    n = program % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    s = tl.arange(0, BLOCK_S)
    row, inside = image * pixels + pixel, pixel < pixels
    offset = tl.load(bias + n, n < N, 0.0)
    hidden_offset = tl.load(fc1_bias + s, s < S, 0.0)
    begin(PDL)
    squeezed = hidden_units(hidden, hidden_offset, image, s, parts, pixels, S, ACTIVATION, BLOCK_PARTS)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        matrix = tl.load(fc2_weight + k[:, None] * S + s[None, :], (k < K)[:, None] & (s < S)[None, :], 0.0)
        factor = excite_slice(matrix, tl.load(fc2_bias + k, k < K, 0.0), squeezed, GATE)
        a = tl.load(x + row[:, None] * K + k[None, :], inside[:, None] & (k < K)[None, :], 0.0)
        a = narrow(a.to(tl.float32) * factor[None, :], x.dtype.element_ty)
        b = tl.load(weight + n[None, :] * K + k[:, None], (n < N)[None, :] & (k < K)[:, None], 0.0)
        acc = dot(a, b, acc, TF32)
    acc += offset[None, :]
    wanted = inside[:, None] & (n < N)[None, :]
    place = row[:, None] * N + n[None, :]
    if residual is not None:
        acc += tl.load(residual + place, wanted, 0.0).to(tl.float32)
    tl.store(out + place, narrow(acc, out.dtype.element_ty), wanted)


def excite_project(
    x: torch.Tensor,
    hidden: torch.Tensor,
    fc1_bias: torch.Tensor,
    fc2_weight: torch.Tensor,
    fc2_bias: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    pixels: int,
    residual: torch.Tensor | None = None,
    out: torch.Tensor,
    activation: str | None,
    gate: str = "hardsigmoid",
    config: Config,
    tf32: bool = False,
    pdl: bool = False,
) -> None:
    """out = (x * scale) @ weight.T + bias + residual, with the scale that `squeeze_excite.excite` computes.

    x [images * pixels, K] and `residual`, `out` [images * pixels, N] in any shape of contiguous channels, of x's dtype;
    weight [N, K] and fc2_weight [K, S] of it; fc1_bias [S], fc2_bias [K], bias [N] of it or float32; hidden
    [images, parts, S] float32. activation: between fc1 and fc2.
    """
    (outputs, inputs), (images, parts, squeezed) = weight.shape, hidden.shape
    tiles = triton.cdiv(pixels, config["BLOCK_M"]) * triton.cdiv(outputs, config["BLOCK_N"])
    launch(
        _excite_project_kernel,
        images * tiles,
        (x, hidden, fc1_bias, fc2_weight, fc2_bias, weight, bias, residual),
        (out,),
        (parts, pixels),
        K=inputs,
        N=outputs,
        S=squeezed,
        ACTIVATION=activation,
        GATE=gate,
        BLOCK_S=triton.next_power_of_2(squeezed),
        TF32=tf32,
        config=config,
        pdl=pdl,
    )
