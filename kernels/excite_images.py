"""The scale of squeeze-excite for many images at once, whose two layers are then products of matrices."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mbv3fast.kernels._common import activate, begin, dot, gated, launch, narrow
from mbv3fast.kernels.configs import Config
from mbv3fast.kernels.linear import mean_of_parts


@triton.jit(do_not_specialize=["images", "parts", "pixels"])
def _excite_images_kernel(
    pool,  # [images, parts, C] float32
    fc1_weight,  # [S, C]
    fc1_bias,  # [S]
    fc2_weight,  # [C, S]
    fc2_bias,  # [C]
    scale,  # [images, C] float32
    images,
    parts,
    pixels,
    C: tl.constexpr,
    S: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_S: tl.constexpr,
    ONE_PART: tl.constexpr,
    TF32: tl.constexpr,
    PDL: tl.constexpr,
):
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    image = (program // blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    c = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    s = tl.arange(0, BLOCK_S)
    inside = image < images
    hidden_offset = tl.load(fc1_bias + s, s < S, 0.0)
    offset = tl.load(fc2_bias + c, c < C, 0.0)
    begin(PDL)
    acc = tl.zeros((BLOCK_M, BLOCK_S), tl.float32)
    for start in range(0, C, BLOCK_K):  # all of fc1 in each program: a matrix for many images is little
        k = start + tl.arange(0, BLOCK_K)
        mean = mean_of_parts(pool, image, inside, k, parts, pixels, C, ONE_PART)
        weight = tl.load(fc1_weight + s[None, :] * C + k[:, None], (s < S)[None, :] & (k < C)[:, None], 0.0)
        acc = dot(narrow(mean, fc1_weight.dtype.element_ty), weight, acc, TF32)
    hidden = activate(acc + hidden_offset[None, :], ACTIVATION)
    weight = tl.load(fc2_weight + c[None, :] * S + s[:, None], (c < C)[None, :] & (s < S)[:, None], 0.0)
    zeros = tl.zeros((BLOCK_M, BLOCK_C), tl.float32)
    excited = dot(narrow(hidden, fc2_weight.dtype.element_ty), weight, zeros, TF32) + offset[None, :]
    tl.store(scale + image[:, None] * C + c[None, :], gated(excited, GATE), inside[:, None] & (c < C)[None, :])


def excite_images(
    pool: torch.Tensor,
    fc1_weight: torch.Tensor,
    fc1_bias: torch.Tensor,
    fc2_weight: torch.Tensor,
    fc2_bias: torch.Tensor,
    *,
    scale: torch.Tensor,
    pixels: int,
    activation: str | None,
    gate: str = "hardsigmoid",
    config: Config,
    tf32: bool = False,
    pdl: bool = False,
) -> None:
    """scale = gate(fc2(activation(fc1(sum of pool over its parts / pixels)))).

    pool [images, parts, C] and scale [images, C] float32; fc1_weight [S, C] and fc2_weight [C, S] of one dtype, in
    which means and hidden units are multiplied; fc1_bias [S], fc2_bias [C] of it or float32.
    """
    (images, parts, channels), squeezed = pool.shape, fc1_weight.shape[0]
    launch(
        _excite_images_kernel,
        triton.cdiv(images, config["BLOCK_M"]) * triton.cdiv(channels, config["BLOCK_C"]),
        (pool, fc1_weight, fc1_bias, fc2_weight, fc2_bias),
        (scale,),
        (images, parts, pixels),
        C=channels,
        S=squeezed,
        ACTIVATION=activation,
        GATE=gate,
        BLOCK_S=max(16, triton.next_power_of_2(squeezed)),
        ONE_PART=parts == 1,
        TF32=tf32,
        config=config,
        pdl=pdl,
    )
