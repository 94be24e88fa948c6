"""Small launches of the kernels with a window, for `test_work`: paddings and strides that fit nowhere."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from mbv3fast.layers import Padding
from tests.kernels.harness import interpreter

assert interpreter
depthwise_conv = pytest.importorskip("mbv3fast.kernels.depthwise_conv")
depthwise_project = pytest.importorskip("mbv3fast.kernels.depthwise_project")
stem_conv = pytest.importorskip("mbv3fast.kernels.stem_conv")

HALF, FLOAT = torch.float16, torch.float32


class Case(NamedTuple):
    """A launch; how many products of blocks in it scale, which are no multiply-adds; whether it has a window."""

    launch: Callable[[], None]
    scaled: int = 0
    windowed: bool = False


def ones(*shape: int, dtype: torch.dtype = HALF) -> Tensor:
    return torch.ones(shape, dtype=dtype)


class Geometry(NamedTuple):
    """Of a window: batch and size of the input, kernel, stride, padding at left, right, top, bottom, dilation."""

    images: int
    height: int
    width: int
    kernel: int
    stride: int
    padding: Padding
    dilation: int = 1

    @property
    def out(self) -> tuple[int, int]:
        left, right, top, bottom = self.padding
        reach = (self.kernel - 1) * self.dilation + 1
        sizes = (self.height + top + bottom, self.width + left + right)
        return (sizes[0] - reach) // self.stride + 1, (sizes[1] - reach) // self.stride + 1

    @property
    def options(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("kernel", "stride", "padding", "dilation")}


GEOMETRIES = {
    "3x3": Geometry(1, 7, 9, 3, 1, (1, 1, 1, 1)),
    "5x5 stride 2": Geometry(2, 9, 6, 5, 2, (2, 2, 2, 2)),
    "same": Geometry(1, 8, 10, 3, 2, (0, 1, 0, 1)),
    "lopsided": Geometry(1, 9, 11, 5, 2, (3, 0, 1, 4)),
    "dilated": Geometry(3, 9, 7, 3, 1, (2, 2, 2, 2), 2),
    "unpadded": Geometry(1, 5, 13, 3, 2, (0, 0, 0, 0)),
}


def stem(geometry: Geometry, channels: int, outputs: int, run: int, is_bytes: bool) -> Case:
    images, height, width, kernel, *_ = geometry
    options = {name: option for name, option in geometry.options.items() if name != "dilation"}
    x = ones(images, channels, height, width)
    if is_bytes:
        x = x.to(torch.uint8).contiguous(memory_format=torch.channels_last)
    factors = {name: ones(channels, dtype=FLOAT) for name in ("factor", "shift")} if is_bytes else {}

    def launch() -> None:
        stem_conv.stem_conv(
            x,
            ones(kernel * kernel * channels, outputs),
            ones(outputs, dtype=FLOAT),
            **factors,
            out=ones(images, *geometry.out, outputs),
            **options,
            activation=None,
            config={"BLOCK_P": run},
        )

    return Case(launch, windowed=True)


def depthwise(
    geometry: Geometry, channels: int, blocks: tuple[int, int, int, int], squeezed: int = 0, pool: bool = False
) -> Case:
    images, height, width, kernel, *_ = geometry
    config = dict(zip(("TILE_H", "TILE_W", "BLOCK_C", "UNROLL"), blocks, strict=True)) | {"BLOCK_S": 4}
    out = ones(images, *geometry.out, channels)
    tiles = depthwise_conv.count_tiles(out, config)
    sums: dict[str, Tensor] = {"pool": ones(images, tiles, channels, dtype=FLOAT)} if pool else {}
    if squeezed:
        parts = depthwise_conv.count_parts(out, config)
        sums |= {"fc1_weight": ones(squeezed, channels), "hidden": ones(images, parts, squeezed, dtype=FLOAT)}

    def launch() -> None:
        depthwise_conv.depthwise_conv(
            ones(images, height, width, channels),
            ones(kernel * kernel, channels),
            ones(channels, dtype=FLOAT),
            out=out,
            **geometry.options,
            **sums,
            activation="relu",
            config=config,
        )

    return Case(launch, windowed=True)


def project(geometry: Geometry, channels: int, outputs: int, blocks: tuple[int, int, int, int], residual: bool) -> Case:
    images, height, width, kernel, *_ = geometry
    shape = (images, *geometry.out, outputs)

    def launch() -> None:
        depthwise_project.depthwise_project(
            ones(images, height, width, channels),
            ones(kernel * kernel, channels),
            ones(channels, dtype=FLOAT),
            ones(outputs, channels),
            ones(outputs, dtype=FLOAT),
            residual=ones(*shape) if residual else None,
            out=ones(*shape),
            **geometry.options,
            activation=None,
            config=dict(zip(("TILE_H", "TILE_W", "BLOCK_C", "UNROLL"), blocks, strict=True)),
        )

    return Case(launch, windowed=True)


def windows() -> dict[str, Case]:
    tiles = itertools.cycle([(4, 4, 16, 1), (2, 8, 32, 9), (4, 8, 16, 2), (8, 4, 32, 25), (1, 16, 16, 3)])
    found = {}
    for name, geometry in GEOMETRIES.items():
        blocks, squeezed, has = next(tiles), 6 * (len(found) % 2), len(found) % 4 > 1
        found[f"depthwise_conv: {name}"] = depthwise(geometry, 24, blocks, squeezed, pool=has)
        found[f"depthwise_project: {name}"] = project(geometry, 40, 24, (4, 4, *next(tiles)[2:]), residual=has)
        if geometry.dilation == 1:
            found[f"stem_conv: {name}"] = stem(geometry, 3, 24, (16, 8, 64)[len(found) % 3], is_bytes=has)
    found["depthwise_conv: all sums"] = depthwise(GEOMETRIES["3x3"], 24, (4, 8, 16, 1), squeezed=5, pool=True)
    return found
