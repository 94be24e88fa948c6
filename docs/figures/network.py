"""The picture of the network in one launch: how the blocks of a cluster share each block of the Large."""

from __future__ import annotations

import itertools

import torch

from docs.figures.drawing import LINE, WIDTH, Box, Canvas, legend
from docs.figures.layers import SIZE
from mbv3fast import large
from mbv3fast.cluster import cut, stage_names
from mbv3fast.cluster.table import BLOCK, STEM, Stage

_LEFT, _HIGH = 268, 30


def _shared(stage: Stage, blocks: int) -> tuple[int, str, int]:
    """Blocks of a group, what each block has, and how many groups have something."""
    if stage.kind not in (STEM, BLOCK):
        return blocks, f"{stage.channels} of {stage.outputs} outputs", 1
    rows = min(stage.rows, stage.output.height)
    channels = "all channels" if stage.sharing == 1 else f"{stage.channels} channels"
    return stage.sharing, f"{rows} of {stage.output.height} rows, {channels}", -(-stage.output.height // rows)


def network() -> str:
    with torch.device("meta"):
        plan = large().half().eval().plan("cuda")
    tables, canvas, y = cut(plan, (SIZE, SIZE)), Canvas(), 22.0
    blocks = tables.cut.blocks
    canvas.text(0, 10, f"1 image of {SIZE}x{SIZE}, Large: a column is a block of a cluster of {blocks}", "head")
    names = (name.split(".block")[0] for name in stage_names(plan))
    named = list(zip(names, tables.stages, strict=True))
    for (size, words, busy), run in itertools.groupby(named, key=lambda one: _shared(one[1], blocks)):
        of = [name for name, _ in run]
        canvas.text(0, y + 11, of[0] if len(of) == 1 else f"{of[0]} to {of[-1]}")
        canvas.text(0, y + 11 + LINE, words, "small")
        wide = (WIDTH - _LEFT) / blocks
        for first in range(0, blocks, size):
            box = Box(_LEFT + first * wide + 2, y, size * wide - 4, _HIGH)
            kind = "chip" if size == 1 else "one"
            canvas.box(box, kind if first // size < busy else "frame")
            for inner in range(1, size):
                canvas.line(_LEFT + (first + inner) * wide, y, _LEFT + (first + inner) * wide, y + _HIGH, "cut")
        y += _HIGH + 7
    legend(
        canvas,
        y + 6,
        ["chip", "one", "frame"],
        chip="a block by itself",
        one="a group: its channels shared, in sixteens",
        frame="has no rows",
    )
    return canvas.svg("How the blocks of a cluster share the rows and the channels of each block of the network")


FIGURES = {"network": network}
