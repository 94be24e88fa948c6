"""Tiles and windows on maps of pixels, and blocks of matrices: what several pictures share."""

from __future__ import annotations

from math import ceil
from typing import NamedTuple

from docs.figures.drawing import LINE, WIDTH, Box, Canvas, grid, part

PANEL = WIDTH / 2 - 15
_MAP = 132  # pixels of a map's side


class Window(NamedTuple):
    """A convolution's tiles: sizes of its input and output, kernel, stride, and a tile's height and width."""

    size: int
    out: int
    kernel: int
    stride: int
    tile: tuple[int, int]

    @property
    def reach(self) -> tuple[int, int]:
        """Height and width of what a tile reads."""
        height, width = ((side - 1) * self.stride + self.kernel for side in self.tile)
        return height, width

    @property
    def tiles(self) -> int:
        return ceil(self.out / self.tile[0]) * ceil(self.out / self.tile[1])


def draw_window(canvas: Canvas, x: float, y: float, title: str, window: Window, note: str) -> float:
    """The input with what one tile reads, and the output with all tiles, `note` beneath. The foot of all that."""
    height, width = window.tile
    canvas.text(x, y + 10, title, "head")
    source, result = Box(x, y + 38, _MAP, _MAP), Box(x + PANEL - _MAP, y + 38, _MAP, _MAP)
    canvas.text(x, y + 31, f"x, {window.size}x{window.size}", "small")
    canvas.text(result.x, y + 31, f"out, {window.out}x{window.out}, in tiles of {height}x{width}", "small")
    for box in (source, result):
        canvas.box(box, "memory")
    row, column = (side * (window.out // side // 2) for side in window.tile)  # of a tile in the middle
    before = window.kernel // 2
    reach = row * window.stride - before, column * window.stride - before, *window.reach
    canvas.box(part(source, window.size, window.size, reach), "halo")
    inner = row * window.stride, column * window.stride, height * window.stride, width * window.stride
    canvas.box(part(source, window.size, window.size, inner), "one")
    canvas.box(part(result, window.out, window.out, (row, column, height, width)), "one")
    grid(canvas, result, window.out, window.out, window.tile)
    middle = source.middle[1]
    canvas.arrow(source.right + 4, middle, result.x - 4, middle, f"{window.reach[0]}x{window.reach[1]} read")
    foot = source.bottom + 16
    for line in note.split("\n"):
        canvas.text(x, foot, line, "small")
        foot += LINE
    return foot - LINE + 4


def draw_channels(canvas: Canvas, x: float, y: float, width: float, channels: int, block: int, words: str) -> float:
    """A bar of channels cut into blocks, the first of which one program has at once. Its foot."""
    bar = Box(x, y, width, 16)
    canvas.box(bar, "memory")
    canvas.box(part(bar, 1, channels, (0, 0, 1, block)), "one")
    grid(canvas, bar, 1, channels, (1, block))
    canvas.text(x, y + 31, words, "small")
    return y + 35


class Product(NamedTuple):
    """A product [rows, inputs] x [inputs, outputs] in blocks of so many of each."""

    rows: int
    inputs: int
    outputs: int
    blocks: tuple[int, int, int]


def draw_product(canvas: Canvas, x: float, y: float, title: str, product: Product, shown: int, note: str) -> float:
    """x, the weights and the result of a product, of whose rows so many are shown, to one scale. The foot of it."""
    rows, (block_m, block_k, block_n) = min(product.rows, shown), product.blocks
    canvas.text(x, y + 10, title, "head")
    scale = min((PANEL - 90) / (product.inputs + product.outputs), 150 / (rows + product.inputs))
    wide, high, long = product.outputs * scale, rows * scale, product.inputs * scale
    left, top = x + 72, y + 40
    weights = Box(left + long + 14, top, wide, long)
    source = Box(left, weights.bottom + 14, long, high)
    result = Box(weights.x, source.y, wide, high)
    for box in (source, weights, result):
        canvas.box(box, "memory")
    row, column = block_m * (rows // block_m // 2), block_n * (product.outputs // block_n // 2)
    canvas.box(part(source, rows, product.inputs, (row, 0, block_m, product.inputs)), "halo")
    canvas.box(part(weights, product.inputs, product.outputs, (0, column, product.inputs, block_n)), "halo")
    canvas.box(part(source, rows, product.inputs, (row, 0, block_m, block_k)), "one")
    canvas.box(part(weights, product.inputs, product.outputs, (0, column, block_k, block_n)), "one")
    canvas.box(part(result, rows, product.outputs, (row, column, block_m, block_n)), "one")
    grid(canvas, result, rows, product.outputs, (block_m, block_n))
    canvas.text(weights.x, weights.y - 5, f"weights, {product.inputs}x{product.outputs}", "small")
    canvas.text(left - 8, source.middle[1] + 4, f"{product.rows:,} row{'s' * (product.rows > 1)}", "small", "end")
    foot = max(source.bottom, source.y + 12) + 16
    if rows < product.rows:
        canvas.text(left, foot, f"the first {rows:,} of {product.rows:,} rows are shown", "small")
        foot += LINE
    for line in note.split("\n"):
        canvas.text(x, foot, line, "small")
        foot += LINE
    return foot - LINE + 4
