"""Pictures of the Triton kernels, cut as `mbv3fast.kernels.configs` cuts them for float16."""

from __future__ import annotations

from math import ceil

from docs.figures.drawing import WIDTH, Box, Canvas, Stage, flow, legend
from docs.figures.layers import BATCHES, HALF, SIZE, Layer, layer
from docs.figures.maps import PANEL, Product, Window, draw_channels, draw_product, draw_window
from mbv3fast.config import network
from mbv3fast.kernels import configs


def title_of(images: int, rest: str = "") -> str:
    return f"{images} image{'s' * (images > 1)}{rest}"


def panels() -> list[tuple[int, float]]:
    """The numbers of images that are drawn side by side, and where."""
    return [(images, number * (WIDTH - PANEL)) for number, images in enumerate(BATCHES)]


def stem_conv() -> str:
    canvas, out = Canvas(), SIZE // 2
    foot = 0.0
    for images, x in panels():
        block = configs.stem_conv(images=images, pixels=out * out)["BLOCK_P"]
        programs = images * ceil(out * out / block)
        canvas.text(x, 10, title_of(images, f": {block} pixels a program"), "head")
        canvas.text(x, 30, f"4 of the output's {out} rows, {out} pixels each", "small")
        rows = Box(x, 36, PANEL, 64)
        canvas.box(rows, "memory")
        high, wide = rows.height / 4, rows.width / out
        for number in range(4 * out // block):
            begin, end = number * block, (number + 1) * block
            while begin < end:  # row by row
                row, upto = begin // out, min(end, (begin // out + 1) * out)
                box = Box(x + begin % out * wide, rows.y + row * high, (upto - begin) * wide, high)
                canvas.box(box, "one" if number == 1 else "memory")
                begin = upto
        canvas.text(x, 116, f"{programs:,} programs, each with all {network('large').stem} outputs", "small")
        foot = 132
    stages = [
        Stage("memory", "image, any strides\nfloats or bytes"),
        Stage("unit", "x * factor - shift\nof bytes, inside alone"),
        Stage("unit", "27 taps unrolled\nfloat32 sums"),
        Stage("unit", "+ bias\nhardswish"),
        Stage("memory", "out, NHWC\nrounded once"),
    ]
    boxes = flow(canvas, foot, stages)
    legend(canvas, boxes[0].bottom + 14, ["one", "memory", "unit"])
    return canvas.svg("Runs of pixels that a program of stem_conv computes, and what it does to them")


def pointwise_conv() -> str:
    chosen, canvas, foot = layer(12), Canvas(), 0.0
    block, size = chosen.block, chosen.size
    for images, x in panels():
        rows = images * size * size
        config = configs.pointwise_conv(rows, block.expanded, block.in_channels, HALF)
        m, n, k = (config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
        programs = ceil(rows / m) * ceil(block.expanded / n)
        product = Product(rows, block.in_channels, block.expanded, (m, k, n))
        rounds = ceil(block.in_channels / k)
        note = f"blocks of {m}x{n}, {programs:,} programs, {rounds} round{'s' * (rounds > 1)} of {k} inputs"
        title = title_of(images, f": the expansion of {chosen.name}")
        foot = max(foot, draw_product(canvas, x, 0, title, product, 512, note))
    stages = [
        Stage("memory", "x, weights"),
        Stage("unit", "x * scale, rounded\nwhere there is one"),
        Stage("unit", "tensor cores\nfloat32 sums"),
        Stage("unit", "+ bias\nactivation\n+ residual"),
        Stage("memory", "out, or its\nsums by tiles"),
    ]
    boxes = flow(canvas, foot + 14, stages)
    names = {"one": "of one program, in one round", "halo": "in all its rounds"}
    legend(canvas, boxes[0].bottom + 14, ["one", "halo", "memory", "unit"], **names)
    return canvas.svg("Blocks of the product that pointwise_conv computes, and what stands around it")


def depthwise_config(chosen: Layer, images: int) -> configs.Config:
    block, out = chosen.block, chosen.out
    return configs.depthwise_conv(images, out, out, block.expanded, block.kernel, HALF, block.squeeze)


def _draw_depthwise(canvas: Canvas, chosen: Layer) -> float:
    """The tiles of a block's depthwise convolution with its squeeze, for few images and many. The foot of that."""
    block, foot = chosen.block, 0.0
    for images, x in panels():
        config = depthwise_config(chosen, images)
        window = Window(chosen.size, chosen.out, block.kernel, block.stride, (config["TILE_H"], config["TILE_W"]))
        blocks = ceil(block.expanded / config["BLOCK_C"])
        programs = images * window.tiles * blocks
        taps = "all taps at once" if config["UNROLL"] > 1 else "a tap a round"
        note = f"{programs:,} programs, {taps}, {config['num_warps']} warps"
        below = draw_window(canvas, x, 0, title_of(images, f": {chosen.name}"), window, note)
        words = f"{block.expanded} channels in blocks of {config['BLOCK_C']}, one a program"
        foot = max(foot, draw_channels(canvas, x, below + 6, PANEL, block.expanded, config["BLOCK_C"], words))
    return foot


def depthwise_conv() -> str:
    canvas = Canvas()
    foot = _draw_depthwise(canvas, layer(5))
    stages = [
        Stage("memory", "x, taps"),
        Stage("unit", "windows\nfloat32 sums"),
        Stage("unit", "+ bias\nactivation"),
        Stage("memory", "out, NHWC"),
    ]
    boxes = flow(canvas, foot + 14, stages)
    y = boxes[0].bottom + 26
    high = boxes[0].height
    left = Box(boxes[1].x, y, boxes[2].right - boxes[1].x - 110, high)
    summed = canvas.box(left, "unit", "sums over the tile's pixels\nof what is not yet rounded")
    words = "few images: x a slice of fc1, hidden\nmany: pool [N, tiles, C]"
    right = Box(summed.right + 26, y, WIDTH - summed.right - 26, high)
    sums = canvas.box(right, "memory", words)
    canvas.arrow(summed.right + 2, summed.middle[1], sums.x - 2, sums.middle[1])
    at = boxes[2].x + 20
    canvas.arrow(at, boxes[2].bottom + 2, at, y - 2, "where squeeze-excite follows")
    legend(canvas, sums.bottom + 14, ["one", "halo", "memory", "unit"])
    return canvas.svg("Tiles of depthwise_conv with their windows, and the squeeze in its epilogue")


def depthwise_project() -> str:
    chosen, canvas, foot = layer(3), Canvas(), 0.0
    block, out = chosen.block, chosen.out
    for images, x in panels():
        sizes = (images, out, out, block.expanded, block.out_channels, block.kernel, HALF)
        config = configs.depthwise_project(*sizes)
        window = Window(chosen.size, out, block.kernel, block.stride, (config["TILE_H"], config["TILE_W"]))
        step, rounds = config["BLOCK_C"], ceil(block.expanded / config["BLOCK_C"])
        note = f"{images * window.tiles:,} programs, {config['num_warps']} warps"
        below = draw_window(canvas, x, 0, title_of(images, f": {chosen.name}"), window, note)
        words = f"{block.expanded} channels, {rounds} rounds of {step} in each program"
        foot = max(foot, draw_channels(canvas, x, below + 6, PANEL, block.expanded, step, words))
    stages = [
        Stage("memory", "x, taps"),
        Stage("unit", "windows\nfloat32 sums"),
        Stage("unit", "+ bias\nactivation"),
        Stage("chip", "rounded:\n[pixels, channels]"),
        Stage("unit", "tensor cores\nfloat32 sums"),
        Stage("unit", "+ bias\n+ residual"),
        Stage("memory", "out"),
    ]
    boxes = flow(canvas, foot + 24, stages, gap=18)
    frame = Box(boxes[1].x - 6, foot + 14, boxes[4].right - boxes[1].x + 12, boxes[0].height + 38)
    canvas.box(frame, "frame")
    canvas.text(
        frame.middle[0], frame.bottom - 7, "round by round over the channels, all outputs at once", "small", "middle"
    )
    legend(canvas, frame.bottom + 12, ["one", "halo", "memory", "chip", "unit"])
    return canvas.svg("Tiles of depthwise_project with their windows, and its loop over channels")


def linear() -> str:
    found, canvas, foot = network("large"), Canvas(), 0.0
    inputs, outputs = found.last_convs[-1], found.hidden
    for images, x in panels():
        config = configs.linear(images, outputs, inputs, HALF)
        m, n, k = (config[name] for name in ("BLOCK_M", "BLOCK_N", "BLOCK_K"))
        product = Product(images, inputs, outputs, (m, k, n))
        programs = ceil(images / m) * ceil(outputs / n)
        units = "tensor cores" if m >= 16 else "CUDA cores, no matrix"
        note = f"blocks of {m}x{n}, {programs:,} programs\n{ceil(inputs / k)} rounds of {k} inputs, {units}"
        foot = max(foot, draw_product(canvas, x, 0, title_of(images, ": the first layer"), product, 128, note))
    stages = [
        Stage("memory", "x\nfeatures.15"),
        Stage("unit", "pointwise_conv\n+ hardswish"),
        Stage("unit", "sums of a tile's\npixels, float32"),
        Stage("memory", "pool [N, parts, 960]\nthe map isn't written"),
        Stage("unit", "linear: sum of parts\n/ pixels, x weights"),
        Stage("memory", "[N, 1280]"),
    ]
    boxes = flow(canvas, foot + 14, stages, gap=18)
    names = {"one": "of one program, in one round", "halo": "in all its rounds"}
    legend(canvas, boxes[0].bottom + 14, ["one", "halo", "memory", "unit"], **names)
    return canvas.svg("Blocks of the classifier's first layer, and the head from the last convolution to it")


FIGURES = {
    "stem_conv": stem_conv,
    "pointwise_conv": pointwise_conv,
    "depthwise_conv": depthwise_conv,
    "depthwise_project": depthwise_project,
    "linear": linear,
}
