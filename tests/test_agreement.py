"""The rule by which the package itself lets two computations agree."""

from __future__ import annotations

import math

import pytest
import torch

from mbv3fast.agreement import difference

TRUTH = torch.tensor([[1.0, -2.0], [4.0, 8.0]], dtype=torch.float64)
EPS = torch.finfo(torch.float32).eps


def off_by(error: float) -> torch.Tensor:
    got = TRUTH.clone()
    got[1, 0] += error
    return got.float()


def test_it_allows_twice_pytorchs_error_and_a_unit_of_the_largest_value() -> None:
    found = difference(off_by(2**-8), off_by(2**-10), TRUTH)
    assert found == (2**-8, 2 * 2**-10 + 8 * EPS)
    assert not found.agrees
    assert str(found) == "0.00391, 0.00195 is allowed"
    assert difference(off_by(2**-9), off_by(2**-10), TRUTH).agrees
    assert difference(off_by(2**-8), off_by(2**-10), TRUTH, factor=4).agrees
    assert difference(off_by(0.01), off_by(0), TRUTH, floor=2**-9).allowed == 2**-6


def test_images_may_repeat() -> None:
    got, plain = off_by(2**-8).repeat(3, 1)[:5], off_by(0).repeat(3, 1)[:5]
    assert difference(got, plain, TRUTH).error == 2**-8
    got[4, 0] += 0.5
    assert difference(got, plain, TRUTH).error == 0.5


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_what_is_not_finite_never_agrees(wrong: float) -> None:
    """Nor do others, where PyTorch itself puts out nothing that is."""
    assert not difference(off_by(wrong), off_by(2**-10), TRUTH).agrees
    assert not difference(off_by(0), off_by(wrong), TRUTH).agrees
    assert not difference(off_by(wrong), off_by(wrong), TRUTH).agrees
