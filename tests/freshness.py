"""Whether a model's second answer counts what was done to it since the first."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mbv3fast.fast import FusedMobileNetV3
from tests.networks import digit_tiles, trained_small
from tests.numerics import Network, tensors

# Of the largest output: by how much two forwards may differ that round in another order.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


def images() -> Tensor:
    return digit_tiles()[:4]


def subject() -> FusedMobileNetV3:
    """The trained network, disturbed so that half precision can't hold its weights exactly."""
    model = copy.deepcopy(trained_small())
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 0.02 * torch.rand(parameter.shape, generator=generator))
    return model


def batch_for(model: nn.Module) -> Tensor:
    return images().to(next(model.parameters()).dtype)


def answer(model: Network) -> Tensor:
    with torch.inference_mode():
        return tensors(model(batch_for(model)))[-1]


def reference(model: Network) -> Tensor:
    with torch.inference_mode():
        return tensors(model.reference_forward(batch_for(model)))[-1]


def difference(one: Tensor, other: Tensor) -> float:
    """Relative to the largest number of `other`; infinite between different shapes."""
    if one.shape != other.shape:
        return float("inf")
    return ((one.double() - other.double()).abs().max() / other.double().abs().max()).item()


def assert_fresh(model: Network, before: Tensor) -> None:
    """The model's answer is the reference's; in half precision, bit for bit that of a copy, which has no engine yet."""
    got = answer(model)
    expected = reference(model) if got.dtype in TOLERANCE else answer(copy.deepcopy(model))
    assert got.dtype == expected.dtype
    tolerance = TOLERANCE.get(got.dtype, 0.0)
    assert difference(before, expected) > 10 * tolerance, "a stale answer would pass"
    assert difference(got, expected) <= tolerance
