"""From the shapes of PyTorch to the memory that kernels read. Prepared tensors pass without a copy."""

from __future__ import annotations

from torch import Tensor


def pixels_first(x: Tensor) -> Tensor:
    """[N, C, H, W] as contiguous [N, H, W, C]; a copy unless x is in channels_last memory."""
    return x.permute(0, 2, 3, 1).contiguous()


def taps_first(weight: Tensor) -> Tensor:
    """A convolution's weight [C', C, k, k] as contiguous [k * k * C, C']; a copy unless it is from `pack_taps`."""
    return weight.permute(2, 3, 1, 0).contiguous().flatten(0, 2)


def pack_taps(weight: Tensor) -> Tensor:
    """A weight [C', C, k, k] in the memory order that `taps_first` needs no copy of."""
    return weight.permute(2, 3, 1, 0).contiguous().permute(3, 2, 0, 1)


def matrix(weight: Tensor) -> Tensor:
    """A 1x1 convolution's weight [C', C, 1, 1] as contiguous [C', C]."""
    return weight.flatten(1).contiguous()
