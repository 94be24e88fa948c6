"""What pictures are drawn with: an SVG whose colours the page's theme sets, by the classes of guide.css.

Of a box: "memory" is a GPU's memory, "chip" shared memory or registers, "unit" what computes, "one" what a single
program or block has, "halo" what its window reads beyond that.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from html import escape
from math import ceil
from typing import NamedTuple

WIDTH = 720
LINE = 15  # from one line of text to the next
_MARGIN = 6


class Box(NamedTuple):
    """A rectangle in a picture, in pixels."""

    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def middle(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height / 2


class Canvas:
    """Collects the parts of an SVG; it becomes as high as what is drawn."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._bottom = 0.0

    def box(self, box: Box, kind: str = "", words: str = "") -> Box:
        """A rectangle, with lines of text in its middle."""
        x, y, width, height = box
        self._parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>')
        self._bottom = max(self._bottom, box.bottom)
        lines = words.split("\n") if words else []
        for number, line in enumerate(lines):
            middle, first = box.middle, LINE * (len(lines) - 1) / 2
            self.text(middle[0], middle[1] - first + number * LINE + 4, line, anchor="middle")
        return box

    def text(self, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
        """One line of text, whose foot is at y."""
        self._parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
        )
        self._bottom = max(self._bottom, y + 4)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "") -> None:
        self._parts.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
        self._bottom = max(self._bottom, y1, y2)

    def arrow(self, x1: float, y1: float, x2: float, y2: float, words: str = "") -> None:
        """From the first point to the second, across or down, with words above it or at its right."""
        across = y1 == y2
        a, b = (-6, -4) if across else (-4, -6)
        head = [(x2, y2), (x2 + a, y2 + b), (x2 - 6, y2 + 4) if across else (x2 + 4, y2 - 6)]
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in head)
        self.line(x1, y1, x2, y2, "arrow")
        self._parts.append(f'<polygon points="{points}"/>')
        if words and across:
            self.text((x1 + x2) / 2, y1 - 5, words, "small", "middle")
        elif words:
            self.text(x1 + 8, (y1 + y2) / 2 + 4, words, "small")

    def svg(self, title: str) -> str:
        """The picture, to stand within a page; `title` is for those who hear it."""
        size = f"-{_MARGIN} -{_MARGIN} {WIDTH + 2 * _MARGIN} {self._bottom + 2 * _MARGIN:.0f}"
        label = escape(title, quote=True)
        parts = "".join(self._parts)
        return f'<svg class="figure" viewBox="{size}" role="img" aria-label="{label}">{parts}</svg>'


def grid(canvas: Canvas, box: Box, rows: int, columns: int, cell: tuple[float, float]) -> None:
    """Lines over a map of so many rows and columns, whose cells are so high and wide; those at its end may be less."""
    high, wide = box.height / rows, box.width / columns
    for y in range(1, ceil(rows / cell[0])):
        canvas.line(box.x, box.y + y * cell[0] * high, box.right, box.y + y * cell[0] * high, "cut")
    for x in range(1, ceil(columns / cell[1])):
        canvas.line(box.x + x * cell[1] * wide, box.y, box.x + x * cell[1] * wide, box.bottom, "cut")


def part(box: Box, rows: int, columns: int, area: tuple[float, float, float, float]) -> Box:
    """The place in a map of an area of it: first row and column, height and width; what sticks out is cut off."""
    row, column, height, width = area
    top, left = max(row, 0), max(column, 0)
    bottom, right = min(row + height, rows), min(column + width, columns)
    high, wide = box.height / rows, box.width / columns
    return Box(box.x + left * wide, box.y + top * high, (right - left) * wide, (bottom - top) * high)


class Stage(NamedTuple):
    """A box of a flow, and what is written on the arrow that leads on from it."""

    kind: str
    words: str
    leads: str = ""


def flow(canvas: Canvas, y: float, stages: Sequence[Stage], gap: float = 26, height: float = 0) -> list[Box]:
    """Boxes from left to right over the whole width, as wide as their words want, with arrows between."""
    lengths = [max(len(line) for line in stage.words.split("\n")) + 2 for stage in stages]
    gaps = [max(gap, 6.2 * len(stage.leads) + 12) for stage in stages[:-1]]
    scale = (WIDTH - sum(gaps)) / sum(lengths)
    height = height or LINE * max(stage.words.count("\n") + 1 for stage in stages) + 14
    boxes, x = [], 0.0
    for stage, length, room in zip(stages, lengths, [*gaps, 0], strict=True):
        boxes.append(canvas.box(Box(x, y, length * scale, height), stage.kind, stage.words))
        x = boxes[-1].right + room
    for stage, (before, after) in zip(stages, itertools.pairwise(boxes), strict=False):
        canvas.arrow(before.right + 2, before.middle[1], after.x - 2, before.middle[1], stage.leads)
    return boxes


LEGEND = {
    "memory": "memory",
    "chip": "shared memory, registers",
    "unit": "computed",
    "one": "of one program",
    "halo": "read by its window",
    "frame": "nothing",
}


def legend(canvas: Canvas, y: float, kinds: Sequence[str], **names: str) -> None:
    """What the colours of `kinds` mean, in a line."""
    x = 0.0
    for kind in kinds:
        words = names.get(kind, LEGEND[kind])
        canvas.box(Box(x, y, 12, 12), kind)
        canvas.text(x + 17, y + 10, words, "small")
        x += 17 + 5.5 * len(words) + 16
