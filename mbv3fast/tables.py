"""The paper's two networks as data: tables 1 and 2 of Howard et al. 2019, "Searching for MobileNetV3" (1905.02244)."""

from __future__ import annotations

from typing import Literal, NamedTuple

Activation = Literal["relu", "hardswish"]
Variant = Literal["large", "small"]


class Row(NamedTuple):
    """One line of the paper's tables."""

    kernel: int
    expanded: int
    out: int
    squeeze_excite: bool
    activation: Activation
    stride: int


_R: Activation = "relu"
_H: Activation = "hardswish"

ROWS: dict[Variant, tuple[Row, ...]] = {
    "large": (
        Row(3, 16, 16, False, _R, 1),
        Row(3, 64, 24, False, _R, 2),
        Row(3, 72, 24, False, _R, 1),
        Row(5, 72, 40, True, _R, 2),
        Row(5, 120, 40, True, _R, 1),
        Row(5, 120, 40, True, _R, 1),
        Row(3, 240, 80, False, _H, 2),
        Row(3, 200, 80, False, _H, 1),
        Row(3, 184, 80, False, _H, 1),
        Row(3, 184, 80, False, _H, 1),
        Row(3, 480, 112, True, _H, 1),
        Row(3, 672, 112, True, _H, 1),
        Row(5, 672, 160, True, _H, 2),
        Row(5, 960, 160, True, _H, 1),
        Row(5, 960, 160, True, _H, 1),
    ),
    "small": (
        Row(3, 16, 16, True, _R, 2),
        Row(3, 72, 24, False, _R, 2),
        Row(3, 88, 24, False, _R, 1),
        Row(5, 96, 40, True, _H, 2),
        Row(5, 240, 40, True, _H, 1),
        Row(5, 240, 40, True, _H, 1),
        Row(5, 120, 48, True, _H, 1),
        Row(5, 144, 48, True, _H, 1),
        Row(5, 288, 96, True, _H, 2),
        Row(5, 576, 96, True, _H, 1),
        Row(5, 576, 96, True, _H, 1),
    ),
}
STEM = 16
LAST_CONV: dict[Variant, int] = {"large": 960, "small": 576}
HIDDEN: dict[Variant, int] = {"large": 1280, "small": 1024}
# Blocks per stage, as timm groups them: each stage begins where the width or the stride changes.
STAGES: dict[Variant, tuple[int, ...]] = {"large": (1, 2, 3, 4, 2, 3), "small": (1, 2, 3, 2, 3)}


def rows(variant: Variant, reduced_tail: bool = False) -> tuple[Row, ...]:
    """A table; its last stage has half the channels where the tail is reduced (section 6.4)."""
    if not reduced_tail:
        return ROWS[variant]
    *kept, first, second, third = ROWS[variant]
    halved = (row._replace(expanded=row.expanded // 2, out=row.out // 2) for row in (second, third))
    return (*kept, first._replace(out=first.out // 2), *halved)  # what the first expands comes from before the tail


ACTIVATIONS: tuple[Activation, ...] = (_R, _H)
