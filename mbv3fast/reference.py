"""One reference per fused op, in plain PyTorch: the definition of right.

Tensors are [N, C, H, W]; weights carry the batch norm already (`mbv3fast.fold`). Each function leaves its inputs as
they are and returns the input's dtype.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from mbv3fast.layers import Padding, same_padding
from mbv3fast.tables import Activation


def activate(x: Tensor, activation: Activation | None, *, inplace: bool = False) -> Tensor:
    """ReLU, hardswish x * relu6(x + 3) / 6, or nothing."""
    if activation == "relu":
        return F.relu(x, inplace=inplace)
    if activation == "hardswish":
        return F.hardswish(x, inplace=inplace)
    return x


def stem_conv_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 2,
    padding: Padding | Literal["same"] = (1, 1, 1, 1),
    activation: Activation | None = "hardswish",
) -> Tensor:
    """Dense convolution + bias + activation: x [N, C, H, W], weight [C', C, k, k], bias [C']."""
    return activate(_conv(x, weight, bias, stride, padding, 1, 1), activation, inplace=True)


def pointwise_conv_ref(
    x: Tensor,
    residual: Tensor | None = None,
    *,
    weight: Tensor,
    bias: Tensor,
    activation: Activation | None = None,
) -> Tensor:
    """1x1 convolution + bias + activation (+ residual [N, C', H, W]): x [N, C, H, W], weight [C', C, 1, 1]."""
    out = activate(F.conv2d(x, weight, bias), activation, inplace=True)
    return out if residual is None else out.add_(residual)


def depthwise_conv_ref(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    stride: int = 1,
    padding: Padding | Literal["same"],
    dilation: int = 1,
    activation: Activation | None = None,
) -> Tensor:
    """Depthwise convolution + bias + activation: x [N, C, H, W], weight [C, 1, k, k], bias [C]."""
    return activate(_conv(x, weight, bias, stride, padding, dilation, x.shape[1]), activation, inplace=True)


def squeeze_excite_ref(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    *,
    activation: Activation = "relu",
) -> Tensor:
    """x * hardsigmoid(fc2(activation(fc1(mean of x over H, W)))): fc1_weight [S, C], fc2_weight [C, S]."""
    return x * squeeze_excite_scale(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation)


def squeeze_excite_scale(
    x: Tensor, fc1_weight: Tensor, fc1_bias: Tensor, fc2_weight: Tensor, fc2_bias: Tensor, activation: Activation
) -> Tensor:
    """What squeeze-excite multiplies x by, [N, C, 1, 1]."""
    hidden = activate(F.linear(global_mean_ref(x), fc1_weight, fc1_bias), activation, inplace=True)
    return F.hardsigmoid(F.linear(hidden, fc2_weight, fc2_bias))[:, :, None, None]


def global_mean_ref(x: Tensor) -> Tensor:
    """Mean over height and width: [N, C, H, W] to [N, C]."""
    return torch.mean(x, dim=(2, 3))


def linear_ref(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: Activation | None = None
) -> Tensor:
    """Linear layer + activation: x [N, C], weight [C', C], bias [C']."""
    return activate(F.linear(x, weight, bias), activation, inplace=True)


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
    return F.conv2d(x, weight, bias, stride=stride, padding=(top, left), dilation=dilation, groups=groups)
