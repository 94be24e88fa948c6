"""`depthwise_excite_project`: a block with squeeze-excite from its depthwise convolution to its end."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mbv3fast.layers import Padding
from mbv3fast.ops.block import Conv, Excite, run_block
from mbv3fast.ops.depthwise_conv import Geometry
from mbv3fast.ops.layout import matrix, pixels_first
from mbv3fast.ops.op import Op, empty
from mbv3fast.ops.pointwise_conv import run_pointwise_conv
from mbv3fast.ops.spec import Arg, Output, Spec
from mbv3fast.ops.squeeze_excite import run_excite, run_excite_images
from mbv3fast.ops.target import Target, resolve
from mbv3fast.reference import Gate, OpActivation, depthwise_excite_project_ref

if TYPE_CHECKING:
    from mbv3fast.kernels.configs import Config


def depthwise_excite_project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    residual: Tensor | None = None,
    *,
    stride: int = 1,
    padding: Padding | int | str,
    dilation: int = 1,
    activation: OpActivation | None = None,
    squeeze_activation: OpActivation = "relu",
    gate: Gate = "hardsigmoid",
) -> Tensor:
    """(y * scale) projected by a 1x1 convolution + project_bias + residual, where

        y = activation(depthwise convolution of x with `weight` + bias)
        scale = gate(fc2(squeeze_activation(fc1(mean of y over P, Q))))

    x: [N, C, H, W], float32, float16 or bfloat16; in channels_last memory it is read as it lies, else copied.
    weight: [C, 1, k, k], fc1_weight: [S, C], fc2_weight: [C, S], project_weight: [M, C, 1, 1] of x's dtype.
    bias: [C], fc1_bias: [S], fc2_bias: [C], project_bias: [M], of it or float32. residual: [N, M, P, Q] of x's dtype.
    padding and activation as in `depthwise_conv`, squeeze_activation and gate as in `squeeze_excite`.

    Returns [N, M, P, Q] of x's dtype in channels_last memory. y is written and read once, the squeeze taken where it is
    computed; the scaled y is never written. Two launches where `kernels.configs` counts that each program of the
    projection had better compute the scale itself, else three, the scale's for few images or for many. Raises as
    `depthwise_conv`.
    Howard et al. 2019, section 5.3; Hu et al. 2018, section 3.
    """
    tensors = (x, weight, bias, fc1_weight, fc1_bias, fc2_weight, fc2_bias, project_weight, project_bias, residual)
    return DEPTHWISE_EXCITE_PROJECT(
        *tensors,
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation=activation,
        squeeze_activation=squeeze_activation,
        gate=gate,
    )


def run_depthwise_excite_project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    residual: Tensor | None = None,
    *,
    stride: int,
    padding: Sequence[int] | str,
    dilation: int,
    activation: str | None,
    squeeze_activation: str | None,
    gate: str = "hardsigmoid",
    target: Target | None = None,
) -> Tensor:
    """`depthwise_excite_project`'s kernels, unchecked."""
    target = resolve(target, x)
    out = run_block(
        x,
        None,
        Conv(weight, bias),
        Excite(fc1_weight, fc1_bias, fc2_weight, fc2_bias, squeeze_activation, gate),
        Conv(project_weight, project_bias),
        residual,
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation=activation,
        target=target,
    )
    if out is not None:
        return out
    from mbv3fast.kernels.depthwise_conv import count_parts, count_tiles

    geometry = Geometry.of(x, weight, stride, padding, dilation)
    y = geometry.empty(x)
    images, channels, height, width = y.shape
    pixels, squeezed = height * width, fc1_weight.shape[0]
    config, tiled = geometry.config(x, target, squeezed), y.permute(0, 2, 3, 1)
    sizes = {"images": images, "squeezed": squeezed, "itemsize": x.itemsize}
    parts, outputs = count_parts(tiled, config), project_weight.shape[0]
    projects = {"pixels": pixels, "outputs": outputs, "inputs": channels, "parts": parts}
    inside = target.config("excite_project", **sizes, **projects)
    many = {} if inside else target.config("excite_images", **sizes, channels=channels)
    depthwise = functools.partial(geometry.launch, x, weight, bias, y, activation, config, target)
    matrices = (fc1_bias, fc2_weight, fc2_bias)
    if many:
        pool = empty((images, count_tiles(tiled, config), channels), like=x, dtype=torch.float32)
        depthwise(pool=pool)
        scale = run_excite_images(pool, fc1_weight, *matrices, pixels, squeeze_activation, gate, many, target)
    else:
        hidden = empty((images, parts, squeezed), like=x, dtype=torch.float32)
        depthwise(fc1_weight=fc1_weight, hidden=hidden)
        if inside:
            projection = (project_weight, project_bias, residual)
            return _excite_project(y, hidden, *matrices, *projection, squeeze_activation, gate, inside, target)
        scale = run_excite(hidden, *matrices, pixels, squeeze_activation, gate, target)
    return run_pointwise_conv(y, project_weight, project_bias, residual, scale, activation=None, target=target)


def _excite_project(
    y: Tensor,
    hidden: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    residual: Tensor | None,
    squeeze_activation: str | None,
    gate: str,
    config: Config,
    target: Target,
) -> Tensor:
    from mbv3fast.kernels.excite_project import excite_project as launch

    images, _, height, width = y.shape
    out = empty((images, project_weight.shape[0], height, width), like=y)
    launch(
        pixels_first(y),
        hidden,
        fc1_bias,
        fc2_weight,
        fc2_bias,
        matrix(project_weight),
        project_bias,
        pixels=height * width,
        residual=None if residual is None else pixels_first(residual),
        out=out,
        activation=squeeze_activation,
        gate=gate,
        config=config,
        tf32=target.tf32,
        pdl=target.pdl,
    )
    return out


DEPTHWISE_EXCITE_PROJECT = Op(
    Spec(
        "depthwise_excite_project",
        args=(
            Arg("x", "N C H W"),
            Arg("weight", "C 1 k k"),
            Arg("bias", "C", kind="either"),
            Arg("fc1_weight", "S C"),
            Arg("fc1_bias", "S", kind="either"),
            Arg("fc2_weight", "C S"),
            Arg("fc2_bias", "C", kind="either"),
            Arg("project_weight", "M C 1 1"),
            Arg("project_bias", "M", kind="either"),
            Arg("residual", "N M P Q", optional=True),
        ),
        outputs=(Output("out", "N M P Q"),),
        options=("stride", "padding", "dilation", "activation", "squeeze_activation", "gate"),
        macs=lambda s: s["N"] * s["C"] * (s["P"] * s["Q"] * (s["k"] ** 2 + s["M"]) + 2 * s["S"]),
    ),
    run_depthwise_excite_project,
    depthwise_excite_project_ref,
)
