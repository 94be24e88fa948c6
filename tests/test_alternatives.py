"""What eager PyTorch and a fusing compiler move, against the paper's table."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import mbv3fast
from mbv3fast.alternatives import alternatives
from mbv3fast.plan import Plan
from mbv3fast.tables import HIDDEN, LAST_CONV, ROWS, STEM, Variant

VARIANTS: tuple[Variant, ...] = ("large", "small")
SIZE = 224


@functools.cache
def planned(variant: Variant, backend: str = "torch") -> Plan:
    with torch.device("meta"):
        return getattr(mbv3fast, variant)(backend=backend).half().eval().plan()


def elements(variant: Variant) -> dict[str, int]:
    """Of the paper's table: what convolutions read and write, what they write, and the parts of that."""
    size = SIZE // 2
    found = {"convolutions": 3 * SIZE**2 + STEM * size**2, "outputs": STEM * size**2, "activated": STEM * size**2}
    found |= {"squeezed": 0, "residuals": 0}
    width = STEM
    for row in ROWS[variant]:
        inner = size // row.stride
        wide, narrow = row.expanded * inner**2, row.out * inner**2
        expanded = row.expanded * size**2 * (row.expanded != width)
        found["convolutions"] += (width * size**2 if expanded else 0) + expanded
        found["convolutions"] += row.expanded * size**2 + 2 * wide + narrow
        found["outputs"] += expanded + wide + narrow
        found["activated"] += expanded + wide
        found["squeezed"] += wide * row.squeeze_excite
        found["residuals"] += narrow * (row.stride == 1 and width == row.out)
        size, width = inner, row.out
    last = LAST_CONV[variant] * size**2
    found["convolutions"] += width * size**2 + last
    return {**found, "outputs": found["outputs"] + last, "activated": found["activated"] + last, "last": last}


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("images", [1, 3])
def test_alternatives_are_those_of_the_table(variant: Variant, images: int) -> None:
    eager, fused = alternatives(planned(variant), (images, 3, SIZE, SIZE))
    each, head = elements(variant), LAST_CONV[variant] + 2 * HIDDEN[variant] + 1000
    layers = each["last"] + LAST_CONV[variant] + head  # the mean reads and writes, each layer too

    def moved(other: Any) -> dict[str, int]:
        return {name: part.moved // (2 * images) for name, part in other.parts.items()}

    assert moved(eager) == {
        "convolutions": each["convolutions"],
        "batch norms": 2 * each["outputs"],
        "activations": 2 * each["activated"],
        "residuals": 3 * each["residuals"],
        "squeeze-excite": 3 * each["squeezed"],
        "head": layers + 2 * HIDDEN[variant],
    }
    assert moved(fused) == {
        "convolutions": each["convolutions"],
        "residuals": each["residuals"],
        "squeeze-excite": each["squeezed"],
        "head": layers,
    }


@pytest.mark.parametrize(("index", "whole", "maps", "launches"), [(0, 56.9, 54.3, 183), (1, 20.0, 19.0, 64)])
def test_what_figures_come_out(index: int, whole: float, maps: float, launches: int) -> None:
    """`maps` is without residuals and head, `launches` without the head's mean and activation."""
    other = alternatives(planned("large"), (1, 3, SIZE, SIZE))[index]
    parts, total = other.parts, other.total
    assert round(total.moved / 1e6, 1) == whole
    assert round((total.moved - parts["residuals"].moved - parts["head"].moved) / 1e6, 1) == maps
    assert total.launches - parts["head"].launches + 2 == launches
    assert parts["head"].launches == (4, 3)[index]


@pytest.mark.parametrize("variant", VARIANTS)
def test_vectors_are_squeeze_excites(variant: Variant) -> None:
    """Of eager: the mean, fc1, its activation, fc2 and hardsigmoid in and out; fused: the mean and the scale."""
    channels = sum(row.expanded for row in ROWS[variant] if row.squeeze_excite)
    eager, fused = alternatives(planned(variant), (2, 3, SIZE, SIZE))
    assert eager.total.vectors == eager.parts["squeeze-excite"].vectors == 2 * 2 * (6 * channels + 4 * channels // 4)
    assert fused.total.vectors == fused.parts["squeeze-excite"].vectors == 2 * 2 * 4 * channels


def test_alternatives_need_a_step_for_each_convolution() -> None:
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match=r"plan: got one for 'triton', needs PyTorch's"):
        alternatives(planned("small", "triton"), (1, 3, SIZE, SIZE))
