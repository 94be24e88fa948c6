"""The ops that serve a CPU: the references, but for two that PyTorch can do faster another way."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mbv3fast.reference import (
    activate,
    depthwise_conv_ref,
    global_mean_ref,
    linear_ref,
    pointwise_conv_ref,
    squeeze_excite_scale,
    stem_conv_ref,
)
from mbv3fast.tables import Activation

# Up to here a matrix product beats oneDNN's convolution, which repacks its weights at every call; far above it loses.
_MOST_PIXELS = 1 << 14


def pointwise_conv(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None = None, *, activation: Activation | None = None
) -> Tensor:
    """`pointwise_conv_ref`, few pixels in channels_last memory as a matrix product."""
    batch, _, height, width = x.shape
    if batch * height * width > _MOST_PIXELS or not x.is_contiguous(memory_format=torch.channels_last):
        return pointwise_conv_ref(x, weight, bias, residual, activation=activation)
    pixels = x.permute(0, 2, 3, 1).flatten(0, 2)
    out = activate(F.linear(pixels, weight.flatten(1), bias), activation, inplace=True)
    out = out.view(batch, height, width, -1).permute(0, 3, 1, 2)
    return out if residual is None else out.add_(residual)


def squeeze_excite_(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    *,
    activation: Activation = "relu",
) -> Tensor:
    """`squeeze_excite_ref` into x: a new large tensor costs the allocator a map and a page fault for each 4 KB."""
    return x.mul_(squeeze_excite_scale(x, fc1_weight, fc1_bias, fc2_weight, fc2_bias, activation))


TORCH_OPS: dict[str, Callable[..., Tensor]] = {
    "stem_conv": stem_conv_ref,
    "pointwise_conv": pointwise_conv,
    "depthwise_conv": depthwise_conv_ref,
    "squeeze_excite": squeeze_excite_,  # a network's x is a depthwise output, which nothing else reads
    "global_mean": global_mean_ref,
    "linear": linear_ref,
}
