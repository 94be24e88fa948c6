"""One reference per fused op, in plain PyTorch: the definition of right.

Tensors are [N, C, H, W]; weights carry the batch norm already (`mbv3fast.fold`). Each function leaves its inputs as
they are and returns the input's dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mbv3fast.layers import Padding, same_padding

# The ops'; those that our networks have are `tables.Activation`.
OpActivation = Literal["relu", "relu6", "hardswish", "silu"]
Gate = Literal["hardsigmoid", "sigmoid"]
ACTIVATIONS: dict[OpActivation, Callable[..., Tensor]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "silu": F.silu,
}
GATES: dict[Gate, Callable[[Tensor], Tensor]] = {"hardsigmoid": F.hardsigmoid, "sigmoid": torch.sigmoid}


def activate(x: Tensor, activation: OpActivation | None, *, inplace: bool = False) -> Tensor:
    """ReLU, ReLU6 min(max(x, 0), 6), hardswish x * relu6(x + 3) / 6, SiLU x * sigmoid(x), or nothing."""
    return x if activation is None else ACTIVATIONS[activation](x, inplace=inplace)


def stem_conv_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    factor: Tensor | None = None,
    shift: Tensor | None = None,
    *,
    stride: int = 2,
    padding: Padding | Literal["same"] = (1, 1, 1, 1),
    activation: OpActivation | None = "hardswish",
) -> Tensor:
    """Dense convolution of x * factor - shift, + bias + activation: x [N, C, H, W], weight [C', C, k, k], bias [C'].

    factor and shift [C] normalise bytes; the result has the dtype of `weight`.
    """
    if factor is not None and shift is not None:
        x = x.to(factor.dtype) * factor[:, None, None] - shift[:, None, None]
    return activate(_conv(x.to(weight.dtype), weight, bias, stride, padding, 1, 1), activation, inplace=True)


def pointwise_conv_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor | None = None,
    scale: Tensor | None = None,
    *,
    activation: OpActivation | None = None,
) -> Tensor:
    """1x1 convolution of x * scale, + bias + activation (+ residual [N, C', H, W]).

    x [N, C, H, W], weight [C', C, 1, 1], bias [C'], scale [N, C].
    """
    if scale is not None:
        x = (x * scale[:, :, None, None]).to(x.dtype)
    out = activate(_conv(x, weight, bias, 1, (0, 0, 0, 0), 1, 1), activation, inplace=True)
    if residual is None:
        return out
    return out.add_(residual) if activation is None else out + residual  # relu's gradient needs its output


def depthwise_conv_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    padding: Padding | Literal["same"],
    dilation: int = 1,
    activation: OpActivation | None = None,
) -> Tensor:
    """Depthwise convolution + bias + activation: x [N, C, H, W], weight [C, 1, k, k], bias [C]."""
    return activate(_conv(x, weight, bias, stride, padding, dilation, x.shape[1]), activation, inplace=True)


def depthwise_project_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    project_weight: Tensor,
    project_bias: Tensor,
    residual: Tensor | None = None,
    *,
    stride: int = 1,
    padding: Padding | Literal["same"],
    dilation: int = 1,
    activation: OpActivation | None = None,
) -> Tensor:
    """`depthwise_conv_ref`, then `pointwise_conv_ref` with the residual [N, C', H', W']."""
    geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    out = depthwise_conv_ref(x, weight, bias, **geometry, activation=activation)
    return pointwise_conv_ref(out, project_weight, project_bias, residual)


def depthwise_excite_project_ref(
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
    padding: Padding | Literal["same"],
    dilation: int = 1,
    activation: OpActivation | None = None,
    squeeze_activation: OpActivation = "relu",
    gate: Gate = "hardsigmoid",
) -> Tensor:
    """`depthwise_conv_ref`, `squeeze_excite_ref`, then `pointwise_conv_ref` with the residual [N, C', H', W']."""
    geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation}
    out = depthwise_conv_ref(x, weight, bias, **geometry, activation=activation)
    fc = fc1_weight, fc1_bias, fc2_weight, fc2_bias
    out = squeeze_excite_ref(out, *fc, activation=squeeze_activation, gate=gate)
    return pointwise_conv_ref(out, project_weight, project_bias, residual)


def inverted_residual_ref(
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
    padding: Padding | Literal["same"],
    dilation: int = 1,
    activation: OpActivation | None = None,
    squeeze_activation: OpActivation = "relu",
    gate: Gate = "hardsigmoid",
) -> Tensor:
    """`pointwise_conv_ref`, then `depthwise_project_ref` or, where there is an fc1, `depthwise_excite_project_ref`."""
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "activation": activation}
    expanded = pointwise_conv_ref(x, expand_weight, expand_bias, activation=activation)
    if fc1_weight is None or fc1_bias is None or fc2_weight is None or fc2_bias is None:
        return depthwise_project_ref(expanded, weight, bias, project_weight, project_bias, residual, **options)
    fc = fc1_weight, fc1_bias, fc2_weight, fc2_bias
    options |= {"squeeze_activation": squeeze_activation, "gate": gate}
    return depthwise_excite_project_ref(expanded, weight, bias, *fc, project_weight, project_bias, residual, **options)


def squeeze_excite_ref(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    *,
    activation: OpActivation = "relu",
    gate: Gate = "hardsigmoid",
) -> Tensor:
    """x * gate(fc2(activation(fc1(mean of x over H, W)))): fc1_weight [S, C], fc2_weight [C, S]."""
    return x * squeeze_excite_scale(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation, gate)


def squeeze_excite_scale(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    activation: OpActivation,
    gate: Gate = "hardsigmoid",
) -> Tensor:
    """What squeeze-excite multiplies x by, [N, C, 1, 1]."""
    hidden = linear_ref(global_mean_ref(x), fc1_weight, fc1_bias, activation=activation)
    return GATES[gate](linear_ref(hidden, fc2_weight, fc2_bias))[:, :, None, None]


def global_mean_ref(x: Tensor) -> Tensor:
    """Mean over height and width: [N, C, H, W] to [N, C]."""
    return torch.mean(x, dim=(2, 3))


def linear_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: OpActivation | None = None
) -> Tensor:
    """Linear layer + activation: x [N, C], weight [C', C], bias [C']."""
    return activate(F.linear(x, weight, None if bias is None else bias.to(x.dtype)), activation, inplace=True)


def pointwise_mean_linear_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor,
    *,
    activation: OpActivation | None = "hardswish",
    linear_activation: OpActivation | None = "hardswish",
) -> Tensor:
    """`pointwise_conv_ref`, its mean over height and width, `linear_ref`."""
    pooled = global_mean_ref(pointwise_conv_ref(x, weight, bias, activation=activation))
    return linear_ref(pooled, linear_weight, linear_bias, activation=linear_activation)


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    stride: int,
    padding: Padding | Literal["same"],
    dilation: int,
    groups: int,
) -> Tensor:
    if padding == "same":
        kernel = weight.shape[2:]
        padding = same_padding(x.shape[2], x.shape[3], kernel, (stride, stride), (dilation, dilation))
    left, right, top, bottom = padding
    if left != right or top != bottom:
        x, left, top = F.pad(x, padding), 0, 0
    bias = bias.to(x.dtype)  # which may be wider
    return F.conv2d(x, weight, bias, stride=stride, padding=(top, left), dilation=dilation, groups=groups)
