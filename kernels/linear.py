"""The classifier's layers: at small batches bound by their weights' bytes, at large ones a matrix product."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mbv3fast.kernels._common import activate, add_up, begin, dot, launch, narrow
from mbv3fast.kernels.configs import Config


@triton.jit
def mean_of_parts(x, row, inside, k, parts, pixels, K: tl.constexpr, ONE_PART: tl.constexpr):
    """x [rows, parts, K] summed over its parts in order, over `pixels`: the mean that the parts are sums of."""
    wanted = inside[:, None] & (k < K)[None, :]
    if ONE_PART:  # no loop within that over k, whose loads would not be issued ahead then
        total = tl.load(x + row[:, None] * K + k[None, :], wanted, 0.0).to(tl.float32)
    else:
        total = tl.zeros((row.shape[0], k.shape[0]), tl.float32)
        for part in range(parts):
            total += tl.load(x + (row * parts + part)[:, None] * K + k[None, :], wanted, 0.0).to(tl.float32)
    return total / pixels


@triton.jit(do_not_specialize=["rows", "parts", "pixels"])
def _linear_kernel(
    x,  # [rows, parts, K]
    weight,  # [N, K]
    bias,  # [N]
    out,  # [rows, N]
    rows,
    parts,
    pixels,
    K: tl.constexpr,
    N: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    ONE_PART: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    tiles_n: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    program = tl.program_id(0)
    row = (program // tiles_n).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = program % tiles_n * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = row < rows
    offset = tl.load(bias + n, n < N, 0.0)
    begin(PDL)
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, K, BLOCK_K):
        k = start + tl.arange(0, BLOCK_K)
        a = mean_of_parts(x, row, inside, k, parts, pixels, K, ONE_PART)
        b = tl.load(weight + n[None, :] * K + k[:, None], (n < N)[None, :] & (k < K)[:, None], 0.0)
        if BLOCK_M < 16:  # too few rows for the tensor cores
            acc += add_up(a[:, :, None] * b.to(tl.float32)[None, :, :], 1)
        else:
            acc = dot(narrow(a, weight.dtype.element_ty), b, acc, TF32)
    acc = activate(acc + offset[None, :], ACTIVATION)
    place = row[:, None] * N + n[None, :]
    tl.store(out + place, narrow(acc, out.dtype.element_ty), inside[:, None] & (n < N)[None, :])


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    out: torch.Tensor,
    pixels: int = 1,
    activation: str | None,
    config: Config,
    tf32: bool = False,
    pdl: bool = False,
) -> None:
    """out = activation((sum of x over its parts / pixels) @ weight.T + bias).

    x [N, parts, C], float32 or of weight's dtype; weight [C', C]; out [N, C'] of weight's dtype; bias [C'] of it or
    float32. With one part and one pixel x is the input itself; with more it is the `pool` of a convolution, and this
    its mean.
    """
    rows, parts, inputs = x.shape
    outputs = weight.shape[0]
    launch(
        _linear_kernel,
        triton.cdiv(rows, config["BLOCK_M"]) * triton.cdiv(outputs, config["BLOCK_N"]),
        (x, weight, bias),
        (out,),
        (rows, parts, pixels),
        K=inputs,
        N=outputs,
        ACTIVATION=activation,
        ONE_PART=parts == 1,
        TF32=tf32,
        config=config,
        pdl=pdl,
    )
