"""The rule by which two computations of one thing agree.

Against the reference in float64, the largest and the RMS error are at most twice those of PyTorch's modules
in the same dtype, plus a floor of one unit in the last place of the output's own size.
"""

from __future__ import annotations

import copy
import math
from typing import NamedTuple

import torch
from torch import Tensor

from mbv3fast.lraspp import LRASPP
from mbv3fast.model import FeatureExtractor, MobileNetV3

Network = MobileNetV3 | FeatureExtractor | LRASPP
FACTOR = 2


class Error(NamedTuple):
    """How far a tensor is from the exact one."""

    largest: float
    rms: float

    @classmethod
    def of(cls, got: Tensor, exact: Tensor) -> Error:
        assert got.shape == exact.shape
        difference = got.double() - exact
        return cls(difference.abs().max().item(), difference.square().mean().sqrt().item())

    def times(self, factor: float) -> Error:
        return Error(self.largest * factor, self.rms * factor)

    def within(self, allowed: Error) -> bool:
        return self.largest <= allowed.largest < math.inf and self.rms <= allowed.rms


def tensors(output: Tensor | list[Tensor] | dict[str, Tensor]) -> list[Tensor]:
    """A classifier's output, a feature extractor's or an LRASPP's, as a list."""
    if isinstance(output, dict):
        return list(output.values())
    return [output] if isinstance(output, Tensor) else output


def exact(model: Network, x: Tensor) -> list[Tensor]:
    """The modules' forward in float64, of the weights and the input as they are."""
    with torch.inference_mode():
        return tensors(copy.deepcopy(model).double().reference_forward(x.double()))


def by_module(model: Network, x: Tensor) -> list[Tensor]:
    """The modules' forward in the model's own dtype."""
    with torch.inference_mode():
        return tensors(model.reference_forward(x))


def by_engine(model: Network, x: Tensor) -> list[Tensor]:
    """`model(x)`, which must not fall back."""
    with torch.inference_mode():
        decision = model.explain(x)
        assert decision.fused, decision.reason
        return tensors(model(x))


def assert_close(got: Tensor, wanted: Tensor) -> None:
    """Equal but for roundings, of two computations of which neither is exact."""
    torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


def allowance(plain: Tensor, truth: Tensor, factor: float = FACTOR) -> Error:
    """What the rule allows where `plain` is PyTorch's own result."""
    error = Error.of(plain, truth).times(factor)
    unit = torch.finfo(plain.dtype).eps
    size = Error.of(truth, torch.zeros_like(truth)).times(unit)
    return Error(error.largest + size.largest, error.rms + size.rms)


def assert_agrees(got: Tensor, plain: Tensor, truth: Tensor) -> None:
    """`got` keeps the rule beside `plain`."""
    assert got.dtype == plain.dtype
    error, allowed = Error.of(got, truth), allowance(plain, truth)
    assert error.within(allowed), f"{error} exceeds {allowed}"


def assert_engine_agrees(model: Network, x: Tensor) -> None:
    """The engine's outputs keep the rule beside the modules'."""
    for got, plain, truth in zip(by_engine(model, x), by_module(model, x), exact(model, x), strict=True):
        assert_agrees(got, plain, truth)
