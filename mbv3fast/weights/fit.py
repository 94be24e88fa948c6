"""Tensors made to fit a network, or refused."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mbv3fast.weights.errors import WeightsError
from mbv3fast.weights.names import OPTIONAL_TENSOR


def fit(
    state: Mapping[str, Tensor],
    needed: Mapping[str, Tensor],
    theirs: Mapping[str, str] | None,
    bn_eps: float,
    whole: str,
) -> dict[str, Tensor]:
    """`state` renamed and reshaped to exactly what is needed, by keys of `needed`.

    theirs: the names in `state` of these keys, None where they are the same. whole: what an unknown key belongs to no
    part of. WeightsError names the first key that doesn't fit.
    """
    theirs = {key: key for key in needed} if theirs is None else theirs
    fitted: dict[str, Tensor] = {}
    for key, like in needed.items():
        name = theirs[key]
        if name not in state and key.endswith(OPTIONAL_TENSOR):
            fitted[key] = torch.zeros(like.shape, dtype=like.dtype)
            continue
        if name not in state:
            raise WeightsError(f"weights: {name} is missing")
        got, wanted = tuple(state[name].shape), tuple(like.shape)
        if _strip(got) != _strip(wanted):
            raise WeightsError(f"weights: {name} has shape {got}, needs {wanted}")
        check_values(name, state[name], bn_eps)
        fitted[key] = state[name].reshape(wanted)
    known = set(theirs.values())
    unknown = next((key for key in state if key not in known), None)
    if unknown is not None:
        raise WeightsError(f"weights: {unknown} belongs to no part of {whole}")
    return fitted


def check_values(name: str, tensor: Tensor, bn_eps: float) -> None:
    """Refuse what no training leaves behind, and what would put out nothing but NaN."""
    if tensor.is_meta:
        raise WeightsError(f"weights: {name} is on meta, it has no data")
    values = tensor if tensor.element_size() > 4 else tensor.float()
    if not values.isfinite().all():
        raise WeightsError(f"weights: {name} holds numbers that are not finite")
    # A little below zero is right: `to_torchvision` moves a difference of eps into the variance.
    if name.endswith("running_var") and (values + bn_eps <= 0).any():
        raise WeightsError(f"weights: {name} holds {values.min():.3g}, needs variances above {-bn_eps:g}")


def _strip(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the trailing ones by which a 1x1 convolution's weight differs from a linear layer's."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape
