"""Pictures of the CUDA kernels, cut as `mbv3fast.cuda.tiles` cuts them for an H100."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import NamedTuple

from docs.figures.drawing import LINE, WIDTH, Box, Canvas, Stage, flow, legend
from docs.figures.layers import Layer, layer
from docs.figures.maps import PANEL, Product, Window, draw_channels, draw_product, draw_window
from docs.figures.triton import panels, title_of
from mbv3fast.cuda import tiles
from mbv3fast.cuda.compiled import TILES, CompiledTile
from mbv3fast.cuda.launch import Tile

_BLOCK = {"one": "of one block", "halo": "read by its windows"}


def _cut(chosen: Layer, images: int) -> tuple[Tile, CompiledTile]:
    """How a block of the network is cut, and the tile that is compiled for it."""
    block = chosen.block
    outputs = 0 if block.squeeze else block.out_channels
    geometry = block.kernel, block.stride, block.activation
    sizes = images, chosen.out, chosen.out, block.in_channels, block.expanded, outputs
    cut = tiles.inverted_residual(*sizes, *geometry, block.has_expand)
    fitting = (one for one in TILES if one.fits(*geometry, outputs, block.has_expand))
    return cut, next(one for one in fitting if one.tile(cut["splits"]) == cut)


def inverted_residual() -> str:
    chosen, canvas, foot = layer(3), Canvas(), 0.0
    block = chosen.block
    for images, x in panels():
        cut, compiled = _cut(chosen, images)
        tile = compiled.height, compiled.width
        window = Window(chosen.size, chosen.out, block.kernel, block.stride, tile)
        shared = compiled.shared_bytes(block.in_channels) / 1024
        note = f"{images * window.tiles * cut['splits']:,} blocks of 128 threads, {shared:.0f} KB of shared memory"
        below = draw_window(canvas, x, 0, title_of(images, f": {chosen.name}"), window, note)
        words = f"{block.expanded} channels, {ceil(block.expanded / compiled.step)} steps of {compiled.step} in a block"
        foot = max(foot, draw_channels(canvas, x, below + 6, PANEL, block.expanded, compiled.step, words))
    y = foot + 24
    stages = [
        Stage("memory", "x"),
        Stage("chip", "x with halo\nall inputs"),
        Stage("unit", "expand\ntensor cores"),
        Stage("chip", "expanded\n[halo, step]"),
        Stage("unit", "windows\nfloat32"),
        Stage("chip", "windowed\n[tile, step]"),
        Stage("unit", "project\ntensor cores"),
        Stage("memory", "out"),
    ]
    boxes = flow(canvas, y, stages, gap=16)
    frame = Box(boxes[2].x - 6, y - 10, boxes[6].right - boxes[2].x + 12, boxes[0].height + 38)
    canvas.box(frame, "frame")
    words = "a step: two barriers, the next step's weights on their way"
    canvas.text(frame.x + 10, frame.bottom - 7, words, "small")
    at = boxes[5].middle[0]
    below = frame.bottom + 22
    words = "where squeeze-excite follows, nothing is projected: windowed to memory, and its sums over the tile"
    canvas.box(Box(0, below, WIDTH, LINE + 12), "memory", words)
    canvas.arrow(at, boxes[5].bottom + 2, at, below - 2)
    legend(canvas, below + LINE + 26, ["one", "halo", "memory", "chip", "unit"], **_BLOCK)
    return canvas.svg("Tiles of inverted_residual with their halo, and the steps over the expanded channels")


class Phase(NamedTuple):
    """What all blocks of a cluster do, what one has of it, and whether all meet behind it."""

    words: str
    kind: str
    each: str
    meets: bool = False


def _draw_cluster(canvas: Canvas, y: float, blocks: int, phases: Sequence[Phase]) -> float:
    """Time goes down, a column is a block. The foot of it."""
    left, high = 268, 26
    wide = (WIDTH - left) / blocks
    for number in range(blocks):
        canvas.text(left + (number + 0.5) * wide, y + 10, f"block {number}", "small", "middle")
    y += 18
    for phase in phases:
        canvas.text(0, y + high / 2 + 4, phase.words)
        for number in range(blocks):
            canvas.box(Box(left + number * wide + 2, y, wide - 4, high), phase.kind, phase.each)
        y += high + 6
        if phase.meets:
            canvas.line(left, y + 3, WIDTH, y + 3, "arrow")
            canvas.text(left - 8, y + 7, "barrier of the cluster", "small", "end")
            y += 14
    return y


def cuda_excite() -> str:
    chosen, canvas = layer(14), Canvas()
    channels, squeezed = chosen.block.expanded, chosen.block.squeeze
    cluster = tiles.excite(1, channels, squeezed)["cluster"]
    units, rows = ceil(squeezed / cluster), ceil(channels / cluster)
    canvas.text(0, 10, f"1 image: {chosen.name}, {channels} channels, {squeezed} hidden units, one cluster", "head")
    phases = [
        Phase("copies its slice of fc1 and of fc2", "chip", f"{units}, {rows}"),
        Phase("after the launch before: means, from pool", "unit", "means"),
        Phase("hidden units of its slice, to all blocks", "unit", f"{units} units", True),
        Phase("scale of its channels, to memory", "unit", f"{rows}"),
    ]
    foot = _draw_cluster(canvas, 24, cluster, phases)
    legend(canvas, foot + 8, ["chip", "unit"])
    return canvas.svg("What the blocks of a cluster do in excite, one after another")


def cuda_squeeze_excite() -> str:
    chosen, canvas = layer(14), Canvas()
    channels, squeezed, pixels = chosen.block.expanded, chosen.block.squeeze, chosen.out**2
    cluster = tiles.squeeze_excite(1, channels, squeezed)["cluster"]
    of_block, units, rows = (ceil(size / cluster) for size in (pixels, squeezed, channels))
    canvas.text(0, 10, f"1 image of {pixels} pixels, {channels} channels: one launch, one cluster", "head")
    phases = [
        Phase("copies slices of fc1, fc2, and its pixels of x", "chip", f"{of_block} px"),
        Phase("sums of its pixels, to the channels' owners", "unit", "sums", True),
        Phase("means of its channels, to all blocks", "unit", f"{rows}", True),
        Phase("hidden units of its slice, to all blocks", "unit", f"{units} units", True),
        Phase("scale of its channels, to all blocks", "unit", f"{rows}", True),
        Phase("x * scale of its pixels, rounded, to memory", "unit", f"{of_block} px"),
    ]
    foot = _draw_cluster(canvas, 24, cluster, phases)
    legend(canvas, foot + 8, ["chip", "unit"])
    return canvas.svg("What the blocks of a cluster do in squeeze_excite, one after another")


def cuda_pointwise_conv() -> str:
    chosen, canvas, foot = layer(12), Canvas(), 0.0
    block, pixels = chosen.block, chosen.out**2
    for images, x in panels():
        cut = tiles.pointwise_conv(images, pixels, block.expanded, block.out_channels, scaled=True)
        rows, outputs = cut["tile_rows"], cut["tile_outputs"]
        warps = {16: 4, 32: 2}.get(rows, 1)  # as mbv3fast/cuda/tiles.py and csrc/pointwise_conv.cu have it
        depth = 64 * warps
        product = Product(images * pixels, block.expanded, block.out_channels, (rows, depth, outputs))
        blocks = images * ceil(pixels / rows) * ceil(block.out_channels / outputs)
        shared = f"{warps} warps share the inputs" if warps > 1 else "a warp has all inputs of its rows"
        note = (
            f"tiles of {rows}x{outputs}, {blocks:,} blocks\n{ceil(block.expanded / depth)} stages of {depth}, {shared}"
        )
        title = title_of(images, f": the projection of {chosen.name}")
        foot = max(foot, draw_product(canvas, x, 0, title, product, 196, note))
    stages = [
        Stage("memory", "x, weights"),
        Stage("chip", "a ring of\n2 or 3 stages"),
        Stage("unit", "x * scale\nin fragments"),
        Stage("unit", "tensor cores\nfloat32 sums"),
        Stage("chip", "sums of\nall warps"),
        Stage("unit", "+ bias\nactivation\n+ residual"),
        Stage("memory", "out"),
    ]
    boxes = flow(canvas, foot + 14, stages, gap=18)
    names = {"one": "of one block, in one stage", "halo": "in all its stages"}
    legend(canvas, boxes[0].bottom + 14, ["one", "halo", "memory", "chip", "unit"], **names)
    return canvas.svg("Tiles of the product that the CUDA pointwise_conv computes, and its stages")


def cuda_depthwise_conv() -> str:
    chosen, canvas, foot = layer(5), Canvas(), 0.0
    block = chosen.block
    for images, x in panels():
        cut = tiles.depthwise_conv(images, chosen.out, chosen.out, block.expanded)
        height, width, channels = cut["tile_height"], cut["tile_width"], 8 * cut["groups"]
        window = Window(chosen.size, chosen.out, block.kernel, block.stride, (height, width))
        blocks = images * window.tiles * ceil(block.expanded / channels)
        threads = height * width // 4 * cut["groups"]
        note = f"{blocks:,} blocks of {threads} threads, each 4 pixels of 8 channels"
        below = draw_window(canvas, x, 0, title_of(images, f": {chosen.name}"), window, note)
        words = f"{block.expanded} channels, {channels} a block"
        foot = max(foot, draw_channels(canvas, x, below + 6, PANEL, block.expanded, channels, words))
    stages = [
        Stage("memory", "x, 16 bytes\nan access"),
        Stage("unit", "a row of taps at a time\nfloat32 sums"),
        Stage("unit", "+ bias\nactivation"),
        Stage("chip", "sums of strips,\nwhere wanted"),
        Stage("memory", "out, and pool\nwhere wanted"),
    ]
    boxes = flow(canvas, foot + 14, stages, gap=20)
    legend(canvas, boxes[0].bottom + 14, ["one", "halo", "memory", "chip", "unit"], **_BLOCK)
    return canvas.svg("Tiles of the CUDA depthwise_conv with their windows")


FIGURES = {
    "inverted_residual": inverted_residual,
    "cuda_excite": cuda_excite,
    "cuda_pointwise_conv": cuda_pointwise_conv,
    "cuda_depthwise_conv": cuda_depthwise_conv,
    "cuda_squeeze_excite": cuda_squeeze_excite,
}
