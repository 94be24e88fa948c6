"""Pictures of squeeze-excite by the Triton kernels, alone and between its neighbours."""

from __future__ import annotations

from math import ceil

from docs.figures.drawing import Canvas, Stage, flow, legend
from docs.figures.layers import BATCHES, HALF, Layer, layer
from docs.figures.maps import PANEL, Window, draw_channels
from docs.figures.triton import depthwise_config, panels, title_of
from mbv3fast.kernels import configs


def squeeze_excite() -> str:
    chosen, canvas = layer(14), Canvas()
    channels, squeezed, pixels = chosen.block.expanded, chosen.block.squeeze, chosen.out**2
    foot = 0.0
    for images, x in panels():
        config = configs.squeeze(images, pixels, channels, squeezed, HALF)
        p, c = config["BLOCK_P"], config["BLOCK_C"]
        parts = ceil(pixels / p) * ceil(channels / c)
        excite = configs.excite(images, parts, channels)["BLOCK_C"]
        canvas.text(x, 10, title_of(images, f": {chosen.name}, {pixels} pixels, {channels} channels"), "head")
        draw_channels(
            canvas, x, 22, PANEL, channels, c, f"squeeze: {c} channels and {p} pixels a program, {parts} parts"
        )
        words = f"excite: {excite} channels of the scale a program, {images * ceil(channels / excite):,} programs"
        foot = draw_channels(canvas, x, 66, PANEL, channels, excite, words)
    one = [
        Stage("memory", "x [pixels, C]"),
        Stage("unit", "squeeze: a part's sums\nx a slice of fc1"),
        Stage("memory", "hidden\n[parts, S]"),
        Stage("unit", "excite: sum of parts\n+ bias, ReLU, slice of fc2"),
        Stage("memory", "scale [C]\nfloat32"),
    ]
    boxes = flow(canvas, foot + 14, one, gap=20)
    y = boxes[0].bottom + 32
    last = [Stage("unit", "apply_scale: x * scale, rounded"), Stage("memory", "out [pixels, C]")]
    lower = flow(canvas, y, last)
    canvas.arrow(boxes[0].middle[0], boxes[0].bottom + 2, boxes[0].middle[0], y - 2, "x once more")
    at, turn = lower[0].right - 30, y - 14
    canvas.line(boxes[-1].middle[0], boxes[-1].bottom + 2, boxes[-1].middle[0], turn, "arrow")
    canvas.line(boxes[-1].middle[0], turn, at, turn, "arrow")
    canvas.arrow(at, turn, at, y - 2)
    legend(canvas, lower[0].bottom + 14, ["one", "memory", "unit"])
    return canvas.svg("The three launches of squeeze_excite, and how channels are cut")


WAYS = {
    "two launches, the scale in the projection's programs": [
        Stage("unit", "depthwise + squeeze"),
        Stage("memory", "y, hidden"),
        Stage("unit", "excite_project: each program\ncomputes the scale, x y, projects"),
        Stage("memory", "out"),
    ],
    "three launches, for few images": [
        Stage("unit", "depthwise + squeeze"),
        Stage("memory", "y, hidden"),
        Stage("unit", "excite: a slice of fc2\na program"),
        Stage("memory", "y, scale"),
        Stage("unit", "pointwise_conv\nof y * scale"),
        Stage("memory", "out"),
    ],
    "three launches, for many images": [
        Stage("unit", "depthwise\n+ sums of tiles"),
        Stage("memory", "y, pool"),
        Stage("unit", "excite_images: both\nlayers on tensor cores"),
        Stage("memory", "y, scale"),
        Stage("unit", "pointwise_conv\nof y * scale"),
        Stage("memory", "out"),
    ],
}


def _way(chosen: Layer, images: int) -> int:
    """By which of WAYS a block is computed, as mbv3fast/ops/depthwise_excite_project.py decides."""
    block, pixels, config = chosen.block, chosen.out**2, depthwise_config(chosen, images)
    window = Window(chosen.size, chosen.out, block.kernel, block.stride, (config["TILE_H"], config["TILE_W"]))
    parts = window.tiles * ceil(block.expanded / config["BLOCK_C"])
    if configs.excite_project(images, pixels, block.out_channels, block.expanded, block.squeeze, parts, HALF):
        return 0
    return 2 if configs.excite_images(images, block.expanded, block.squeeze, HALF) else 1


def depthwise_excite_project() -> str:
    canvas, y = Canvas(), 0.0
    excited = [found for found in map(layer, range(1, 16)) if found.block.squeeze]
    for number, (words, stages) in enumerate(WAYS.items()):
        canvas.text(0, y + 12, words, "head")
        taken = [
            f"features {', '.join(str(one.number) for one in found)} at {title_of(images)}"
            for images in BATCHES
            if (found := [one for one in excited if _way(one, images) == number])
        ]
        canvas.text(0, y + 28, "; ".join(taken) or "none here", "small")
        y = flow(canvas, y + 36, stages)[0].bottom + 22
    legend(canvas, y, ["memory", "unit"])
    return canvas.svg("The three ways in which depthwise_excite_project is launched, and which blocks take which")


FIGURES = {
    "squeeze_excite": squeeze_excite,
    "depthwise_excite_project": depthwise_excite_project,
}
