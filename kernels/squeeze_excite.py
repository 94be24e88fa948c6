"""Squeeze-excite in slices, so that no wide block's two matrices pass through one multiprocessor.

    scale = gate(fc2(activation(fc1(mean(x)))))

The first launch (here `squeeze`, in a network the epilogue of `depthwise_conv`) multiplies each tile's sums by its own
slice of fc1; the second, `excite`, adds these in a fixed order and computes a slice of fc2 in each program. Where that
costs less than a launch, each program of `excite_project` does so.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mbv3fast.kernels._common import activate, add_up, begin, gated, launch, narrow
from mbv3fast.kernels.configs import Config


def count_parts(pixels: int, channels: int, config: Config) -> int:
    """Parts of each image's `hidden` that `squeeze` makes."""
    return triton.cdiv(pixels, config["BLOCK_P"]) * triton.cdiv(channels, config["BLOCK_C"])


@triton.jit
def squeeze_slice(hidden, part, fc1_weight, total, c, C: tl.constexpr, S: tl.constexpr, BLOCK_S: tl.constexpr):
    """hidden [parts, S] at `part` = fc1_weight [S, C] at the channels c times their sums `total`.

    Linear in the sums, so it may come before their reduction.
    """
    for start in range(0, S, BLOCK_S):
        s = start + tl.arange(0, BLOCK_S)
        weight = tl.load(fc1_weight + s[:, None] * C + c[None, :], (s < S)[:, None] & (c < C)[None, :], 0.0)
        tl.store(hidden + part * S + s, add_up(weight.to(tl.float32) * total[None, :], 1), s < S)


@triton.jit(do_not_specialize=["pixels"])
def _squeeze_kernel(
    x,  # [images, pixels, C]
    fc1_weight,  # [S, C]
    hidden,  # [images, tiles * blocks of channels, S] float32
    pixels,
    C: tl.constexpr,
    S: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PDL: tl.constexpr,
):
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    tiles = tl.cdiv(pixels, BLOCK_P)
    program = tl.program_id(0)
    block = program % blocks
    tile = program // blocks % tiles
    image = (program // blocks // tiles).to(tl.int64)
    pixel = tile * BLOCK_P + tl.arange(0, BLOCK_P)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    begin(PDL)
    place = (image * pixels + pixel)[:, None] * C + c[None, :]
    values = tl.load(x + place, (pixel < pixels)[:, None] & (c < C)[None, :], 0.0)
    total = add_up(values.to(tl.float32), 0)
    squeeze_slice(hidden, (image * tiles + tile) * blocks + block, fc1_weight, total, c, C, S, BLOCK_S)


@triton.jit
def hidden_units(
    hidden,
    offset,
    image,
    s,
    parts,
    pixels,
    S: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
):
    """activation(fc1 of an image's mean), [BLOCK_S], from the parts of its sums in `hidden` [images, parts, S]."""
    sums = tl.zeros((BLOCK_PARTS, s.shape[0]), tl.float32)
    for start in range(0, parts, BLOCK_PARTS):
        part = start + tl.arange(0, BLOCK_PARTS)
        place = (image * parts + part)[:, None] * S + s[None, :]
        sums += tl.load(hidden + place, (part < parts)[:, None] & (s < S)[None, :], 0.0)
    return activate(add_up(sums, 0) / pixels + offset, ACTIVATION)


@triton.jit
def excite_slice(weight, offset, squeezed, GATE: tl.constexpr):
    """gate(fc2) of some channels, of whose matrix `weight` [channels, BLOCK_S] are the rows."""
    return gated(add_up(weight.to(tl.float32) * squeezed[None, :], 1) + offset, GATE)


@triton.jit(do_not_specialize=["parts", "pixels"])
def _excite_kernel(
    hidden,  # [images, parts, S] float32
    fc1_bias,  # [S]
    fc2_weight,  # [C, S]
    fc2_bias,  # [C]
    scale,  # [images, C] float32
    parts,
    pixels,
    C: tl.constexpr,
    S: tl.constexpr,
    ACTIVATION: tl.constexpr,
    GATE: tl.constexpr,
    BLOCK_PARTS: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,
    PDL: tl.constexpr,
):
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    image = (program // blocks).to(tl.int64)
    c = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    s = tl.arange(0, BLOCK_S)
    weight = tl.load(fc2_weight + c[:, None] * S + s[None, :], (c < C)[:, None] & (s < S)[None, :], 0.0)
    offset = tl.load(fc2_bias + c, c < C, 0.0)
    hidden_offset = tl.load(fc1_bias + s, s < S, 0.0)
    begin(PDL)
    squeezed = hidden_units(hidden, hidden_offset, image, s, parts, pixels, S, ACTIVATION, BLOCK_PARTS)
    tl.store(scale + image * C + c, excite_slice(weight, offset, squeezed, GATE), c < C)


@triton.jit(do_not_specialize=["rows", "pixels"])
def _scale_kernel(
    x,  # [rows, C]
    scale,  # [images, C] float32
    out,  # [rows, C]
    rows,
    pixels,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    PDL: tl.constexpr,
):
    blocks: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    row = (program // blocks).to(tl.int64) * BLOCK_P + tl.arange(0, BLOCK_P)
    c = program % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = (row < rows)[:, None] & (c < C)[None, :]
    begin(PDL)
    place = row[:, None] * C + c[None, :]
    factor = tl.load(scale + (row // pixels)[:, None] * C + c[None, :], inside, 0.0)
    value = tl.load(x + place, inside, 0.0).to(tl.float32)
    tl.store(out + place, narrow(value * factor, out.dtype.element_ty), inside)


def squeeze(
    x: torch.Tensor, fc1_weight: torch.Tensor, *, pixels: int, hidden: torch.Tensor, config: Config, pdl: bool = False
) -> None:
    """hidden [N, parts, S] float32 = fc1_weight [S, C] times each part's sums of x [N, pixels, C].

    A part is a tile of BLOCK_P pixels and a block of BLOCK_C channels; fc1_weight is of x's dtype.
    """
    squeezed, channels = fc1_weight.shape[:2]
    launch(
        _squeeze_kernel,
        hidden.shape[0] * hidden.shape[1],
        (x, fc1_weight),
        (hidden,),
        (pixels,),
        C=channels,
        S=squeezed,
        config=config,
        pdl=pdl,
    )


def excite(
    hidden: torch.Tensor,
    fc1_bias: torch.Tensor,
    fc2_weight: torch.Tensor,
    fc2_bias: torch.Tensor,
    *,
    scale: torch.Tensor,
    pixels: int,
    activation: str | None,
    gate: str = "hardsigmoid",
    config: Config,
    pdl: bool = False,
) -> None:
    """scale = gate(fc2(activation(sum of hidden over its parts / pixels + fc1_bias))).

    hidden [N, parts, S] and scale [N, C] float32; fc2_weight [C, S], fc1_bias [S], fc2_bias [C] of any dtype.
    """
    images, parts, squeezed = hidden.shape
    channels = scale.shape[1]
    launch(
        _excite_kernel,
        images * triton.cdiv(channels, config["BLOCK_C"]),
        (hidden, fc1_bias, fc2_weight, fc2_bias),
        (scale,),
        (parts, pixels),
        C=channels,
        S=squeezed,
        ACTIVATION=activation,
        GATE=gate,
        BLOCK_S=triton.next_power_of_2(squeezed),
        config=config,
        pdl=pdl,
    )


def apply_scale(
    x: torch.Tensor,
    scale: torch.Tensor,
    *,
    rows: int,
    pixels: int,
    out: torch.Tensor,
    config: Config,
    pdl: bool = False,
) -> None:
    """out [rows, C] = x [rows, C] * scale [images, C], each image `pixels` rows."""
    channels = scale.shape[1]
    launch(
        _scale_kernel,
        triton.cdiv(rows, config["BLOCK_P"]) * triton.cdiv(channels, config["BLOCK_C"]),
        (x, scale),
        (out,),
        (rows, pixels),
        C=channels,
        config=config,
        pdl=pdl,
    )
