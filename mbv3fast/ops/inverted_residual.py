"""`inverted_residual`: a whole block, whose expanded activation CUDA kernels keep on the chip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mbv3fast.layers import Padding
from mbv3fast.ops.block import Conv, Excite, run_block
from mbv3fast.ops.depthwise_excite_project import run_depthwise_excite_project
from mbv3fast.ops.depthwise_project import run_depthwise_project
from mbv3fast.ops.op import Op
from mbv3fast.ops.pointwise_conv import run_pointwise_conv
from mbv3fast.ops.spec import Arg, Output, Spec
from mbv3fast.ops.target import Target, resolve
from mbv3fast.reference import Gate, OpActivation, inverted_residual_ref


def inverted_residual(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    fc1_weight: Tensor | None = None,
    fc1_bias: Tensor | None = None,
    fc2_weight: Tensor | None = None,
    fc2_bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    stride: int = 1,
    padding: Padding | int | str,
    dilation: int = 1,
    activation: OpActivation | None = None,
    squeeze_activation: OpActivation = "relu",
    gate: Gate = "hardsigmoid",
) -> Tensor:
    """(z * scale) projected by a 1x1 convolution + project_bias + residual, where

        y = activation(x convolved with expand_weight + expand_bias)
        z = activation(depthwise convolution of y with `weight` + bias)
        scale = gate(fc2(squeeze_activation(fc1(mean of z over P, Q)))), or 1 where fc1_weight is None

    x: [N, C, H, W], float32, float16 or bfloat16; in channels_last memory it is read as it lies, else copied.
    expand_weight: [E, C, 1, 1], weight: [E, 1, k, k], project_weight: [M, E, 1, 1], fc1_weight: [S, E], fc2_weight:
    [E, S] of x's dtype; expand_bias: [E], bias: [E], project_bias: [M], fc1_bias: [S], fc2_bias: [E], of it or float32.
    residual: [N, M, P, Q] of x's dtype. padding and activation as in `depthwise_conv`, squeeze_activation and gate as
    in `squeeze_excite`.

    Returns [N, M, P, Q] of x's dtype in channels_last memory. By CUDA kernels one launch, or three with squeeze-excite,
    and y is never written: in float16 and bfloat16, for channels in eights and what csrc/inverted_residual_tiles.inc
    lists, and "hardsigmoid" alone. Else by those of `pointwise_conv` and `depthwise_project` or
    `depthwise_excite_project`. Raises as `depthwise_conv`. Sandler et al. 2018, section 3.3; Howard et al. 2019,
    section 5.3.
    """
    fc = fc1_weight, fc1_bias, fc2_weight, fc2_bias
    return INVERTED_RESIDUAL(
        *(x, expand_weight, expand_bias, weight, bias, project_weight, project_bias, *fc, residual),
        stride=stride,
        padding=padding,
        dilation=dilation,
        activation=activation,
        squeeze_activation=squeeze_activation,
        gate=gate,
    )


def _run(
    x: Tensor,
    expand_weight: Tensor,
    expand_bias: Tensor,
    weight: Tensor,
    bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    fc1_weight: Tensor | None = None,
    fc1_bias: Tensor | None = None,
    fc2_weight: Tensor | None = None,
    fc2_bias: Tensor | None = None,
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
    target = resolve(target, x)
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "activation": activation}
    fc = fc1_weight, fc1_bias, fc2_weight, fc2_bias
    excite = None if fc1_weight is None else Excite(*fc, squeeze_activation, gate)  # type: ignore[arg-type] # all or none
    parts = Conv(weight, bias), excite, Conv(project_weight, project_bias), residual
    out = run_block(x, Conv(expand_weight, expand_bias), *parts, **options, target=target)
    if out is not None:
        return out
    expanded = run_pointwise_conv(x, expand_weight, expand_bias, activation=activation, target=target)
    others = weight, bias, *(() if excite is None else fc), project_weight, project_bias, residual
    if excite is None:
        return run_depthwise_project(expanded, *others, **options, target=target)
    options |= {"squeeze_activation": squeeze_activation, "gate": gate}
    return run_depthwise_excite_project(expanded, *others, **options, target=target)


INVERTED_RESIDUAL = Op(
    Spec(
        "inverted_residual",
        args=(
            Arg("x", "N C H W"),
            Arg("expand_weight", "E C 1 1"),
            Arg("expand_bias", "E", kind="either"),
            Arg("weight", "E 1 k k"),
            Arg("bias", "E", kind="either"),
            Arg("project_weight", "M E 1 1"),
            Arg("project_bias", "M", kind="either"),
            Arg("fc1_weight", "S E", optional=True),
            Arg("fc1_bias", "S", kind="either", optional=True),
            Arg("fc2_weight", "E S", optional=True),
            Arg("fc2_bias", "E", kind="either", optional=True),
            Arg("residual", "N M P Q", optional=True),
        ),
        outputs=(Output("out", "N M P Q"),),
        options=("stride", "padding", "dilation", "activation", "squeeze_activation", "gate"),
        macs=lambda s: (
            s["N"] * s["E"] * (s["H"] * s["W"] * s["C"] + s["P"] * s["Q"] * (s["k"] ** 2 + s["M"]) + 2 * s.get("S", 0))
        ),
        together=("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"),
    ),
    _run,
    inverted_residual_ref,
)
