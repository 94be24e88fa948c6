"""`depthwise_project`: a block without squeeze-excite from its depthwise convolution to its end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mbv3fast.layers import Padding
from mbv3fast.ops.block import Conv, run_block
from mbv3fast.ops.depthwise_conv import run_depthwise_conv
from mbv3fast.ops.layout import matrix, pixels_first, taps_first
from mbv3fast.ops.op import Op, empty
from mbv3fast.ops.pointwise_conv import run_pointwise_conv
from mbv3fast.ops.spec import Arg, Output, Spec, conv_shape
from mbv3fast.ops.target import Target, resolve
from mbv3fast.reference import OpActivation, depthwise_project_ref


def depthwise_project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    residual: Tensor | None = None,
    *,
    stride: int = 1,
    padding: Padding | int | str,
    dilation: int = 1,
    activation: OpActivation | None = None,
) -> Tensor:
    """activation(depthwise convolution of x with `weight` + bias), projected by a 1x1 convolution, + residual.

    x: [N, C, H, W], float32, float16 or bfloat16; in channels_last memory it is read as it lies, else copied.
    weight: [C, 1, k, k], project_weight: [M, C, 1, 1] of x's dtype; bias: [C], project_bias: [M], of it or float32.
    residual: [N, M, P, Q] of x's dtype. padding and activation as in `depthwise_conv`.

    Returns [N, M, P, Q] of x's dtype in channels_last memory. The depthwise output, rounded to x's dtype, never leaves
    the chip; where `kernels.configs` says that two kernels are better, it does. Raises as `depthwise_conv`.
    """
    tensors = (x, weight, bias, project_weight, project_bias, residual)
    return DEPTHWISE_PROJECT(*tensors, stride=stride, padding=padding, dilation=dilation, activation=activation)


def run_depthwise_project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    residual: Tensor | None = None,
    *,
    stride: int,
    padding: Sequence[int] | str,
    dilation: int,
    activation: str | None,
    target: Target | None = None,
) -> Tensor:
    """`depthwise_project`'s kernels, unchecked."""
    target = resolve(target, x)
    project = Conv(project_weight, project_bias)
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "activation": activation}
    by_cuda = run_block(x, None, Conv(weight, bias), None, project, residual, **options, target=target)
    if by_cuda is not None:
        return by_cuda
    from mbv3fast.kernels.depthwise_project import depthwise_project as launch

    images, channels, height, width = x.shape
    outputs, kernel = project_weight.shape[0], weight.shape[3]
    shape = conv_shape((height, width), kernel, stride, padding, dilation)
    geometry: dict[str, Any] = {"stride": stride, "padding": shape.padding, "dilation": dilation}
    config = target.config(
        "depthwise_project",
        images=images,
        out_height=shape.height,
        out_width=shape.width,
        channels=channels,
        outputs=outputs,
        kernel=kernel,
        itemsize=x.itemsize,
    )
    if not config:
        expanded = run_depthwise_conv(x, weight, bias, **geometry, activation=activation, target=target)
        return run_pointwise_conv(expanded, project_weight, project_bias, residual, activation=None, target=target)
    out = empty((images, outputs, shape.height, shape.width), like=x)
    launch(
        pixels_first(x),
        taps_first(weight),
        bias,
        matrix(project_weight),
        project_bias,
        residual=None if residual is None else pixels_first(residual),
        out=out.permute(0, 2, 3, 1),
        kernel=kernel,
        **geometry,
        activation=activation,
        config=config,
        tf32=target.tf32,
        pdl=target.pdl,
    )
    return out


DEPTHWISE_PROJECT = Op(
    Spec(
        "depthwise_project",
        args=(
            Arg("x", "N C H W"),
            Arg("weight", "C 1 k k"),
            Arg("bias", "C", kind="either"),
            Arg("project_weight", "M C 1 1"),
            Arg("project_bias", "M", kind="either"),
            Arg("residual", "N M P Q", optional=True),
        ),
        outputs=(Output("out", "N M P Q"),),
        options=("stride", "padding", "dilation", "activation"),
        macs=lambda s: s["N"] * s["P"] * s["Q"] * s["C"] * (s["k"] ** 2 + s["M"]),
    ),
    run_depthwise_project,
    depthwise_project_ref,
)
