"""`linear`, a classifier's layer, and `pointwise_mean_linear`, from the last convolution through the first of them."""

from __future__ import annotations

import torch
from torch import Tensor

from mbv3fast.ops.layout import matrix, pixels_first
from mbv3fast.ops.op import Op, empty
from mbv3fast.ops.spec import Arg, Output, Spec
from mbv3fast.ops.target import Target, resolve
from mbv3fast.reference import OpActivation, linear_ref, pointwise_mean_linear_ref


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, activation: OpActivation | None = None) -> Tensor:
    """activation(x @ weight.T + bias).

    x: [N, C], float32, float16 or bfloat16. weight: [M, C] of x's dtype. bias: [M], of it or float32.
    activation as in `depthwise_conv`.

    Returns [N, M] of x's dtype. Sums are in float32, in a fixed order; float32 factors are exact unless PyTorch's own
    switch allows TF32. Raises TypeError for a wrong dtype, ValueError for a wrong shape, device or activation.
    """
    return LINEAR(x, weight, bias, activation=activation)


def pointwise_mean_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor,
    *,
    activation: OpActivation | None = "hardswish",
    linear_activation: OpActivation | None = "hardswish",
) -> Tensor:
    """The mean over H, W of activation(x convolved with `weight` + bias), and a linear layer upon it.

    linear_activation(mean @ linear_weight.T + linear_bias)

    x: [N, C, H, W], float32, float16 or bfloat16; in channels_last memory it is read as it lies, else copied.
    weight: [M, C, 1, 1], linear_weight: [L, M] of x's dtype; bias: [M], linear_bias: [L], of it or float32.
    activation and linear_activation as in `depthwise_conv`.

    Returns [N, L] of x's dtype. What the convolution makes is summed where it is made and never written; the mean is in
    float32, in a fixed order. Raises as `linear`. Howard et al. 2019, section 5.1, the efficient last stage.
    """
    tensors = (x, weight, bias, linear_weight, linear_bias)
    return POINTWISE_MEAN_LINEAR(*tensors, activation=activation, linear_activation=linear_activation)


def _run_linear(
    x: Tensor, weight: Tensor, bias: Tensor, *, activation: str | None, target: Target | None = None
) -> Tensor:
    return _multiply(x.unsqueeze(1), weight, bias, 1, activation, resolve(target, x))


def _run_pointwise_mean_linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor,
    *,
    activation: str | None,
    linear_activation: str | None,
    target: Target | None = None,
) -> Tensor:
    from mbv3fast.kernels.pointwise_conv import count_tiles, pointwise_conv

    target = resolve(target, x)
    images, inputs, height, width = x.shape
    channels, pixels = weight.shape[0], height * width
    config = target.config(
        "pointwise_conv",
        rows=images * pixels,
        outputs=channels,
        inputs=inputs,
        itemsize=x.itemsize,
        pixels=pixels,
    )
    pool = empty((images, count_tiles(pixels, config), channels), like=x, dtype=torch.float32)
    pointwise_conv(
        pixels_first(x),
        matrix(weight),
        bias,
        rows=images * pixels,
        pixels=pixels,
        out=None,
        pool=pool,
        activation=activation,
        config=config,
        tf32=target.tf32,
        pdl=target.pdl,
    )
    return _multiply(pool, linear_weight, linear_bias, pixels, linear_activation, target)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor, pixels: int, activation: str | None, target: Target) -> Tensor:
    """From x [N, parts, C], whose sum over the parts and `pixels` is what the matrix multiplies."""
    from mbv3fast.kernels.linear import linear as launch

    rows, _, inputs = x.shape
    outputs = weight.shape[0]
    out = empty((rows, outputs), like=x, dtype=weight.dtype)
    config = target.config(
        "linear",
        rows=rows,
        outputs=outputs,
        inputs=inputs,
        itemsize=weight.itemsize,
    )
    launch(
        x,
        weight,
        bias,
        out=out,
        pixels=pixels,
        activation=activation,
        config=config,
        tf32=target.tf32,
        pdl=target.pdl,
    )
    return out


LINEAR = Op(
    Spec(
        "linear",
        args=(Arg("x", "N C"), Arg("weight", "M C"), Arg("bias", "M", kind="either")),
        outputs=(Output("out", "N M"),),
        options=("activation",),
        macs=lambda s: s["N"] * s["C"] * s["M"],
    ),
    _run_linear,
    linear_ref,
)
POINTWISE_MEAN_LINEAR = Op(
    Spec(
        "pointwise_mean_linear",
        args=(
            Arg("x", "N C H W"),
            Arg("weight", "M C 1 1"),
            Arg("bias", "M", kind="either"),
            Arg("linear_weight", "L M"),
            Arg("linear_bias", "L", kind="either"),
        ),
        outputs=(Output("out", "N L"),),
        options=("activation", "linear_activation"),
        macs=lambda s: s["N"] * s["M"] * (s["H"] * s["W"] * s["C"] + s["L"]),
    ),
    _run_pointwise_mean_linear,
    pointwise_mean_linear_ref,
)
