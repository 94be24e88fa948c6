"""What a CUDA launch does, counted from its sizes and its tile, as `mbv3fast.launching.Work` says."""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import ceil
from typing import NamedTuple

from mbv3fast.launching import Launch, Work, issued_bytes

_FRAGMENT = 16  # rows and columns that tensor cores take
_SLICE = 64  # inputs of a warp in a stage of csrc/pointwise_conv.cu


class Axis(NamedTuple):
    """One axis of a convolution: outputs come in tiles of `tile`, the windows of a tile reach over `reach` inputs."""

    size: int  # of the input
    outputs: int
    tile: int
    kernel: int
    stride: int
    before: int

    def inside(self) -> list[int]:
        """Of each tile, the inputs of its windows that exist."""
        reach = (self.tile - 1) * self.stride + self.kernel
        starts = (first * self.stride - self.before for first in range(0, self.outputs, self.tile))
        return [max(0, min(start + reach, self.size) - max(start, 0)) for start in starts]


def work(launch: Launch) -> Work:
    """The work of a launch, of which nothing is run. Raises KeyError for a kernel that is not ours."""
    return _KERNELS[launch.kernel.name](launch)


def _axes(launch: Launch) -> tuple[Axis, Axis]:
    s, tile = launch.sizes, launch.constants
    rows = Axis(s["height"], s["out_height"], tile["tile_height"], s["kernel"], s["stride"], s["top"])
    return rows, Axis(s["width"], s["out_width"], tile["tile_width"], s["kernel"], s["stride"], s["left"])


@functools.cache
def _rounded(rows: Axis, columns: Axis, multiple: int) -> int:
    """Pixels of all tiles' windows that exist, each tile's rounded up."""
    return sum(ceil(height * width / multiple) * multiple for height in rows.inside() for width in columns.inside())


def _inverted_residual(launch: Launch) -> Work:
    s, tile, programs = launch.sizes, launch.constants, launch.grid
    rows, columns = _axes(launch)
    images, channels, inputs, outputs = s["images"], s["channels"], s["inputs"], s["outputs"]
    pixels, splits, expands = s["out_height"] * s["out_width"], tile["splits"], "expand_weight" in launch.reads
    read, tiles = sum(rows.inside()) * sum(columns.inside()), programs // splits  # pixels of an image's tiles
    steps = ceil(channels / tile["step"])
    padded = steps * tile["step"]
    issued = issued_bytes(
        launch,
        x=images * read * (inputs * splits if expands else channels),
        expand_weight=tiles * channels * inputs,
        expand_bias=tiles * channels,
        weight=tiles * channels * s["kernel"] ** 2,
        bias=tiles * channels,
        project_weight=tiles * channels * outputs,
        project_bias=tiles * outputs,
        residual=images * pixels * outputs,
        out=images * pixels * (outputs or channels),
        pool=tiles * channels,
    )
    tile_pixels = tile["tile_height"] * tile["tile_width"]
    dots = images * _rounded(rows, columns, _FRAGMENT) * padded * inputs if expands else 0
    if outputs:
        dots += tiles * _round_up(tile_pixels) * padded * _round_up(outputs)
    fmas = tiles * tile_pixels * padded * s["kernel"] ** 2
    serial = ceil(steps / splits) + ("residual" in launch.reads)
    return Work(programs, serial, issued, dots, fmas, read / (s["height"] * s["width"]))


def _depthwise_conv(launch: Launch) -> Work:
    s, tile, programs = launch.sizes, launch.constants, launch.grid
    rows, columns = _axes(launch)
    channels, taps = s["channels"], s["kernel"] ** 2
    blocks = ceil(channels / (8 * tile["groups"]))
    tiles = programs // blocks
    read = sum(rows.inside()) * sum(columns.inside())
    strips = ceil(s["out_height"] / tile["tile_height"]) * tile["tile_height"] * ceil(s["out_width"] / 4)
    issued = issued_bytes(
        launch,
        x=s["images"] * read * channels,
        weight=s["images"] * strips * taps * channels,
        bias=s["images"] * strips * channels,
        out=s["images"] * s["out_height"] * s["out_width"] * channels,
        pool=tiles * channels,
    )
    fmas = programs * tile["tile_height"] * tile["tile_width"] * 8 * tile["groups"] * taps
    return Work(programs, s["kernel"], issued, 0, fmas, read / (s["height"] * s["width"]))


def _pointwise_conv(launch: Launch) -> Work:
    s, tile, programs = launch.sizes, launch.constants, launch.grid
    inputs, outputs, rows = s["inputs"], s["outputs"], s["images"] * s["pixels"]
    blocks = ceil(outputs / tile["tile_outputs"])
    tiles, warps = programs // blocks, {16: 4, 32: 2}.get(tile["tile_rows"], 1)  # that share the inputs
    issued = issued_bytes(
        launch,
        x=rows * inputs * blocks,
        scale=programs * inputs,
        weight=tiles * outputs * inputs,
        bias=rows * outputs,
        residual=rows * outputs,
        out=rows * outputs,
    )
    dots = programs * tile["tile_rows"] * tile["tile_outputs"] * inputs
    serial = ceil(inputs / (_SLICE * warps)) + ("residual" in launch.reads)
    return Work(programs, serial, issued, dots)


def _excite(launch: Launch) -> Work:
    s, tile, programs = launch.sizes, launch.constants, launch.grid
    images, channels, squeezed = s["images"], s["channels"], s["squeezed"]
    groups = ceil(images / tile["images_per_cluster"])
    slices = programs // groups
    layers = ("fc1_weight" in launch.reads) + ("fc2_weight" in launch.reads)  # one in each of two launches, or both
    issued = issued_bytes(
        launch,
        pool=slices * (launch.reads["pool"].numel() if "pool" in launch.reads else 0),
        fc1_weight=groups * squeezed * channels,
        fc1_bias=groups * squeezed,
        fc2_weight=groups * channels * squeezed,
        fc2_bias=groups * channels,
        hidden=images * squeezed * (slices if "hidden" in launch.reads else 1),
        scale=images * channels,
    )
    return Work(programs, 1 + layers, issued, fmas=layers * groups * tile["images_per_cluster"] * channels * squeezed)


def _squeeze_excite(launch: Launch) -> Work:
    """All of it, or one of its parts: sums, scale (as `excite`), product."""
    if "x" not in launch.reads:
        return _excite(launch)
    s = launch.sizes
    elements, vectors = s["images"] * s["pixels"] * s["channels"], s["images"] * s["channels"]
    weights = s["images"] * s["channels"] * s["squeezed"] * ("fc1_weight" in launch.reads)
    issued = issued_bytes(
        launch,
        x=elements,
        fc1_weight=weights,
        fc1_bias=s["images"] * s["squeezed"],
        fc2_weight=weights,
        fc2_bias=vectors,
        scale=vectors,
        pool=launch.grid * s["channels"],
        out=elements,
    )
    return Work(launch.grid, 1 + 2 * ("fc1_weight" in launch.reads), issued, fmas=elements + 2 * weights)


def _round_up(value: int) -> int:
    return ceil(value / _FRAGMENT) * _FRAGMENT


_KERNELS: dict[str, Callable[[Launch], Work]] = {
    "depthwise_conv": _depthwise_conv,
    "excite": _excite,
    "inverted_residual": _inverted_residual,
    "pointwise_conv": _pointwise_conv,
    "squeeze_excite": _squeeze_excite,
}
