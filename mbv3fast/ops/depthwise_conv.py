"""`depthwise_conv`, alone and with the scale of the squeeze-excite that follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mbv3fast.layers import Padding
from mbv3fast.ops.layout import pixels_first, taps_first
from mbv3fast.ops.op import Op, empty
from mbv3fast.ops.spec import Arg, Output, Spec, conv_shape
from mbv3fast.ops.squeeze_excite import run_excite
from mbv3fast.ops.target import Target, resolve
from mbv3fast.reference import depthwise_conv_ref, depthwise_squeeze_excite_ref
from mbv3fast.tables import Activation


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    padding: Padding | str,
    dilation: int = 1,
    activation: Activation | None = None,
) -> Tensor:
    """activation(depthwise convolution of x with `weight` + bias).

    x: [N, C, H, W], float32, float16 or bfloat16; in channels_last memory it is read as it lies, else copied.
    weight: [C, 1, k, k] of x's dtype. bias: [C], of it or float32.
    padding: zeros at left, right, top, bottom, or "same", TensorFlow's. activation: "relu", "hardswish" or None.

    Returns [N, C, P, Q] of x's dtype in channels_last memory. Sums are in float32, in a fixed order.
    Raises TypeError for a wrong dtype, ValueError for a wrong shape, device or option.
    """
    return DEPTHWISE_CONV(x, weight, bias, stride=stride, padding=padding, dilation=dilation, activation=activation)


def depthwise_squeeze_excite(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    *,
    stride: int = 1,
    padding: Padding | str,
    dilation: int = 1,
    activation: Activation | None = None,
    squeeze_activation: Activation = "relu",
) -> tuple[Tensor, Tensor]:
    """`depthwise_conv`, and the scale that squeeze-excite would multiply its output by.

    out = activation(depthwise convolution of x with `weight` + bias)
    scale = hardsigmoid(fc2(squeeze_activation(fc1(mean of out over P, Q))))

    x, weight, bias and the options as in `depthwise_conv`. fc1_weight: [S, C], fc2_weight: [C, S] of x's dtype;
    fc1_bias: [S], fc2_bias: [C], of it or float32.

    Returns out [N, C, P, Q] of x's dtype in channels_last memory, and scale [N, C] float32, which `pointwise_conv`
    takes: the scaled tensor itself is never written. Raises as `depthwise_conv`. Hu et al. 2018, section 3.
    """
    return DEPTHWISE_SQUEEZE_EXCITE(
        x,
        weight,
        bias,
        fc1_weight,
        fc1_bias,
        fc2_weight,
        fc2_bias,
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation=activation,
        squeeze_activation=squeeze_activation,
    )


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


def _run_depthwise_squeeze_excite(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    *,
    stride: int,
    padding: Sequence[int] | str,
    dilation: int,
    activation: str | None,
    squeeze_activation: str,
    target: Target | None = None,
) -> tuple[Tensor, Tensor]:
    target = resolve(target, x)
    geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    out, hidden = _convolve(x, weight, bias, fc1_weight, activation, target, **geometry)
    assert hidden is not None
    pixels = out.shape[2] * out.shape[3]
    return out, run_excite(hidden, fc1_bias, fc2_weight, fc2_bias, pixels, squeeze_activation, target)


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


_CONV_ARGS = (Arg("x", "N C H W"), Arg("weight", "C 1 k k"), Arg("bias", "C", kind="either"))
_FC_ARGS = (
    Arg("fc1_weight", "S C"),
    Arg("fc1_bias", "S", kind="either"),
    Arg("fc2_weight", "C S"),
    Arg("fc2_bias", "C", kind="either"),
)
_GEOMETRY = ("stride", "padding", "dilation", "activation")

DEPTHWISE_CONV = Op(
    Spec(
        "depthwise_conv",
        args=_CONV_ARGS,
        outputs=(Output("out", "N C P Q"),),
        options=_GEOMETRY,
        macs=lambda s: s["N"] * s["P"] * s["Q"] * s["C"] * s["k"] ** 2,
    ),
    run_depthwise_conv,
    depthwise_conv_ref,
)
DEPTHWISE_SQUEEZE_EXCITE = Op(
    Spec(
        "depthwise_squeeze_excite",
        args=(*_CONV_ARGS, *_FC_ARGS),
        outputs=(Output("out", "N C P Q"), Output("scale", "N C", float32=True)),
        options=(*_GEOMETRY, "squeeze_activation"),
        macs=lambda s: s["N"] * s["C"] * (s["P"] * s["Q"] * s["k"] ** 2 + 2 * s["S"]),
    ),
    _run_depthwise_squeeze_excite,
    depthwise_squeeze_excite_ref,
)
