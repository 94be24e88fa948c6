"""`depthwise_conv`, and for blocks with squeeze-excite the squeeze in its epilogue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mbv3fast.layers import Padding
from mbv3fast.ops.layout import pixels_first, taps_first
from mbv3fast.ops.op import Op, empty
from mbv3fast.ops.spec import Arg, Output, Spec, conv_shape
from mbv3fast.ops.target import Target, resolve
from mbv3fast.reference import depthwise_conv_ref
from mbv3fast.tables import Activation


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    padding: Padding | int | str,
    dilation: int = 1,
    activation: Activation | None = None,
) -> Tensor:
    """activation(depthwise convolution of x with `weight` + bias).

    x: [N, C, H, W], float32, float16 or bfloat16; in channels_last memory it is read as it lies, else copied.
    weight: [C, 1, k, k] of x's dtype. bias: [C], of it or float32.
    padding: zeros on every side, or at left, right, top, bottom, or "same", TensorFlow's.
    activation: "relu", "hardswish" or None.

    Returns [N, C, P, Q] of x's dtype in channels_last memory. Sums are in float32, in a fixed order.
    Raises TypeError for a wrong dtype, ValueError for a wrong shape, device or option.
    """
    return DEPTHWISE_CONV(x, weight, bias, stride=stride, padding=padding, dilation=dilation, activation=activation)


def run_depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int,
    padding: Sequence[int] | str,
    dilation: int,
    activation: str | None,
    target: Target | None = None,
) -> Tensor:
    """`depthwise_conv`'s kernel, unchecked."""
    geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    return _convolve(x, weight, bias, None, activation, resolve(target, x), **geometry)[0]


def run_depthwise_squeeze(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    fc1_weight: Tensor,
    *,
    stride: int,
    padding: Sequence[int] | str,
    dilation: int,
    activation: str | None,
    target: Target,
) -> tuple[Tensor, Tensor]:
    """What `depthwise_conv` puts out, and fc1 of its sums in parts, [N, parts, S] float32, to be added; unchecked."""
    geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    out, hidden = _convolve(x, weight, bias, fc1_weight, activation, target, **geometry)
    assert hidden is not None
    return out, hidden


def _convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    fc1_weight: Tensor | None,
    activation: str | None,
    target: Target,
    *,
    stride: int,
    padding: Sequence[int] | str,
    dilation: int,
) -> tuple[Tensor, Tensor | None]:
    """The output, and where there is an fc1 the parts of its sums, [N, parts, S]."""
    from mbv3fast.kernels.depthwise_conv import count_parts
    from mbv3fast.kernels.depthwise_conv import depthwise_conv as launch

    images, channels, height, width = x.shape
    kernel = weight.shape[3]
    shape = conv_shape((height, width), kernel, stride, padding, dilation)
    out = empty((images, channels, shape.height, shape.width), like=x)
    hidden, squeezed = None, 0 if fc1_weight is None else fc1_weight.shape[0]
    config = target.config(
        "depthwise_conv",
        images=images,
        out_height=shape.height,
        out_width=shape.width,
        channels=channels,
        kernel=kernel,
        squeeze=squeezed,
        itemsize=x.itemsize,
    )
    if fc1_weight is not None:
        parts = count_parts(out.permute(0, 2, 3, 1), config)
        hidden = empty((images, parts, squeezed), like=x, dtype=torch.float32)
    launch(
        pixels_first(x),
        taps_first(weight),
        bias,
        out=out.permute(0, 2, 3, 1),
        kernel=kernel,
        stride=stride,
        padding=shape.padding,
        dilation=dilation,
        activation=activation,
        fc1_weight=fc1_weight,
        hidden=hidden,
        config=config,
        pdl=target.pdl,
    )
    return out, hidden


DEPTHWISE_CONV = Op(
    Spec(
        "depthwise_conv",
        args=(Arg("x", "N C H W"), Arg("weight", "C 1 k k"), Arg("bias", "C", kind="either")),
        outputs=(Output("out", "N C P Q"),),
        options=("stride", "padding", "dilation", "activation"),
        macs=lambda s: s["N"] * s["P"] * s["Q"] * s["C"] * s["k"] ** 2,
    ),
    run_depthwise_conv,
    depthwise_conv_ref,
)
