"""`stem_conv`: the first convolution, from images as users have them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mbv3fast.layers import Padding
from mbv3fast.ops.layout import taps_first
from mbv3fast.ops.op import Op, empty
from mbv3fast.ops.spec import Arg, Output, Spec, conv_shape
from mbv3fast.ops.target import Target, resolve
from mbv3fast.reference import OpActivation, stem_conv_ref


def stem_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    factor: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    stride: int = 2,
    padding: Padding | int | str = (1, 1, 1, 1),
    activation: OpActivation | None = "hardswish",
) -> Tensor:
    """activation(convolution of (x * factor - shift) with `weight` + bias), zeros padded after the normalisation.

    x: [N, C, H, W] of any strides, floating or uint8. For bytes whose preprocessing is (x / 255 - mean) / std,
        factor = 1 / (255 std) and shift = mean / std, [C] float32; for normalised floats leave both out.
    weight: [M, C, k, k], float32, float16 or bfloat16: the dtype of the output. bias: [M], of it or float32.
    padding: zeros on every side, or at left, right, top, bottom, or "same", TensorFlow's.
    activation: "relu", "relu6", "hardswish", "silu" or None.

    Returns [N, M, P, Q] in channels_last memory. Sums are in float32, in a fixed order.
    Raises TypeError for a wrong dtype, ValueError for a wrong shape, device or option, or `factor` without `shift`.
    Howard et al. 2019, table 1, first row, with its batch norm folded in.
    """
    return STEM_CONV(x, weight, bias, factor, shift, stride=stride, padding=padding, activation=activation)


def _run(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    factor: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    stride: int,
    padding: Sequence[int] | str,
    activation: str | None,
    target: Target | None = None,
) -> Tensor:
    from mbv3fast.kernels.stem_conv import stem_conv as launch

    target = resolve(target, weight)
    outputs, _, _, kernel = weight.shape
    shape = conv_shape((x.shape[2], x.shape[3]), kernel, stride, padding)
    out = empty((x.shape[0], outputs, shape.height, shape.width), like=x, dtype=weight.dtype)
    launch(
        x,
        taps_first(weight),
        bias,
        factor=factor,
        shift=shift,
        out=out.permute(0, 2, 3, 1),
        kernel=kernel,
        stride=stride,
        padding=shape.padding,
        activation=activation,
        config=target.config(
            "stem_conv",
            images=x.shape[0],
            pixels=shape.height * shape.width,
        ),
        pdl=target.pdl,
    )
    return out


STEM_CONV = Op(
    Spec(
        "stem_conv",
        args=(
            Arg("x", "N C H W", kind="image"),
            Arg("weight", "M C k k"),
            Arg("bias", "M", kind="either"),
            Arg("factor", "C", kind="float32", optional=True),
            Arg("shift", "C", kind="float32", optional=True),
        ),
        outputs=(Output("out", "N M P Q"),),
        options=("stride", "padding", "activation"),
        macs=lambda s: s["N"] * s["P"] * s["Q"] * s["M"] * s["C"] * s["k"] ** 2,
        together=("factor", "shift"),
    ),
    _run,
    stem_conv_ref,
)
