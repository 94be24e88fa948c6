"""`squeeze_excite`: the whole of it, for networks of other kinds than ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mbv3fast.cuda.launch import activates, serves
from mbv3fast.cuda.squeeze_excite import excite as cuda_excite
from mbv3fast.cuda.squeeze_excite import squeeze_excite as cuda_squeeze_excite
from mbv3fast.cuda.tiles import excites, excites_in_two
from mbv3fast.ops.layout import pixels_first
from mbv3fast.ops.op import Op, empty
from mbv3fast.ops.spec import Arg, Output, Spec
from mbv3fast.ops.target import Target, resolve
from mbv3fast.reference import Gate, OpActivation, squeeze_excite_ref

if TYPE_CHECKING:
    from mbv3fast.kernels.configs import Config


def squeeze_excite(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    *,
    activation: OpActivation = "relu",
    gate: Gate = "hardsigmoid",
) -> Tensor:
    """x * gate(fc2(activation(fc1(mean of x over H, W)))).

    x: [N, C, H, W], float32, float16 or bfloat16; in channels_last memory it is read as it lies, else copied.
    fc1_weight: [S, C], fc2_weight: [C, S] of x's dtype; fc1_bias: [S], fc2_bias: [C], of it or float32.
    activation: "relu", "relu6", "hardswish", "silu" or None. gate: "hardsigmoid" or "sigmoid".

    Returns [N, C, H, W] of x's dtype in channels_last memory: three launches, the matrices cut into slices so that
    many multiprocessors read them. Means, sums and scale are in float32, in a fixed order. CUDA kernels
    (MBV3FAST_BACKEND=cuda) take float16 and bfloat16, C in eights up to 2048, S up to 512, of activations "relu",
    "hardswish" or none, and "hardsigmoid" alone.
    Raises TypeError for a wrong dtype, ValueError for a wrong shape, device, activation or gate. Hu et al. 2018,
    section 3, whose gate is "sigmoid"; "hardsigmoid" is that of Howard et al. 2019, section 5.2.
    """
    return SQUEEZE_EXCITE(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation=activation, gate=gate)


def run_excite(
    hidden: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    pixels: int,
    activation: str | None,
    gate: str,
    target: Target,
) -> Tensor:
    """The scale [N, C] from the parts of fc1's sums, [N, parts, S]."""
    from mbv3fast.kernels.squeeze_excite import excite

    images, parts, _ = hidden.shape
    channels = fc2_weight.shape[0]
    scale = empty((images, channels), like=hidden)
    excite(
        hidden,
        fc1_bias,
        fc2_weight,
        fc2_bias,
        scale=scale,
        pixels=pixels,
        activation=activation,
        gate=gate,
        config=target.config("excite", images=images, parts=parts, channels=channels),
        pdl=target.pdl,
    )
    return scale


def run_excite_pool(
    pool: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    activation: str | None,
    *,
    pixels: int,
    target: Target,
) -> Tensor:
    """The scale [N, C] from the sums of tiles, [N, tiles, C], by the CUDA kernel."""
    (images, _, channels), squeezed = pool.shape, fc1_weight.shape[0]
    tile = target.tile("excite", images=images, channels=channels, squeezed=squeezed)
    scale = empty((images, channels), like=pool)
    cuda_excite(
        pool,
        fc1_weight,
        fc1_bias.float(),
        fc2_weight,
        fc2_bias.float(),
        hidden=empty((images, squeezed), like=pool) if excites_in_two(tile, channels, squeezed) else None,
        scale=scale,
        pixels=pixels,
        activation=activation,
        tile=tile,
        pdl=target.pdl,
    )
    return scale


def run_excite_images(
    pool: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    pixels: int,
    activation: str | None,
    gate: str,
    config: Config,
    target: Target,
) -> Tensor:
    """The scale [N, C] from the sums of tiles, [N, tiles, C]."""
    from mbv3fast.kernels.excite_images import excite_images

    scale = empty((pool.shape[0], pool.shape[2]), like=pool)
    excite_images(
        pool,
        fc1_weight,
        fc1_bias,
        fc2_weight,
        fc2_bias,
        scale=scale,
        pixels=pixels,
        activation=activation,
        gate=gate,
        config=config,
        tf32=target.tf32,
        pdl=target.pdl,
    )
    return scale


def _run(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    *,
    activation: str | None,
    gate: str = "hardsigmoid",
    target: Target | None = None,
) -> Tensor:
    target = resolve(target, x)
    images, channels, height, width = x.shape
    pixels, squeezed = height * width, fc1_weight.shape[0]
    covered = serves(x.dtype, channels) and excites(channels, squeezed) and activates(activation, gate=gate)
    if target.cuda and covered:
        out = empty((images, channels, height, width), like=x)
        cuda_squeeze_excite(
            pixels_first(x),
            fc1_weight,
            fc1_bias.float(),
            fc2_weight,
            fc2_bias.float(),
            out=out.permute(0, 2, 3, 1),
            activation=activation,
            tile=target.tile("squeeze_excite", images=images, channels=channels, squeezed=squeezed),
            pdl=target.pdl,
        )
        return out
    from mbv3fast.kernels import squeeze_excite as kernels

    config = target.config(
        "squeeze", images=images, pixels=pixels, channels=channels, squeezed=squeezed, itemsize=x.itemsize
    )
    source = pixels_first(x)
    hidden = empty((images, kernels.count_parts(pixels, channels, config), squeezed), like=x, dtype=torch.float32)
    kernels.squeeze(source, fc1_weight, pixels=pixels, hidden=hidden, config=config, pdl=target.pdl)
    scale = run_excite(hidden, fc1_bias, fc2_weight, fc2_bias, pixels, activation, gate, target)
    out = empty((images, channels, height, width), like=x)
    config = target.config("apply_scale", rows=images * pixels, channels=channels, itemsize=x.itemsize)
    kernels.apply_scale(source, scale, rows=images * pixels, pixels=pixels, out=out, config=config, pdl=target.pdl)
    return out


SQUEEZE_EXCITE = Op(
    Spec(
        "squeeze_excite",
        args=(
            Arg("x", "N C H W"),
            Arg("fc1_weight", "S C"),
            Arg("fc1_bias", "S", kind="either"),
            Arg("fc2_weight", "C S"),
            Arg("fc2_bias", "C", kind="either"),
        ),
        outputs=(Output("out", "N C H W"),),
        options=("activation", "gate"),
        macs=lambda s: 2 * s["N"] * s["C"] * s["S"],
    ),
    _run,
    squeeze_excite_ref,
)
