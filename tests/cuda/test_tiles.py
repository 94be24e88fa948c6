"""How CUDA launches are cut: tiles are those that are compiled, take the memory that is believed, fit every chip."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import suppress
from math import ceil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mbv3fast.config import BlockConfig, network
from mbv3fast.cuda.compiled import SHARED, TILES, CompiledTile, shared_limit
from mbv3fast.cuda.inverted_residual import inverted_residual as launch_inverted_residual
from mbv3fast.cuda.launch import Tile
from mbv3fast.cuda.library import KernelError
from mbv3fast.cuda.tiles import (
    depthwise_conv,
    excite,
    excites_in_two,
    inverted_residual,
    pointwise_conv,
)
from mbv3fast.tables import ROWS
from tests.cuda.harness import last_launch
from tests.cuda.test_inverted_residual import tile_of
from tests.guards import BLOCKS

INC = Path(__file__).parents[2] / "csrc" / "inverted_residual_tiles.inc"
CHIPS = [capability for capability in SHARED if capability >= 80]  # that the kernels are for
SMS = {80: 108, 86: 84, 87: 16, 89: 128, 90: 132, 100: 148, 120: 170}


def compiled() -> Iterator[CompiledTile]:
    for line in re.findall(r"^TILE\((.*)\)$", INC.read_text(encoding="utf-8"), re.MULTILINE):
        kernel, stride, activation, height, width, strip_h, strip_w, step, outputs, expands = line.split(", ")
        numbers = int(kernel), int(stride), activation.removeprefix("k").lower(), int(height), int(width)
        strip = int(strip_h), int(strip_w)
        yield CompiledTile(*numbers, strip, int(step), int(outputs), expands == "true")


@pytest.mark.skipif(not INC.is_file(), reason="no csrc/")
def test_tiles_are_those_that_are_compiled() -> None:
    assert tuple(compiled()) == TILES
    assert len(set(TILES)) == len(TILES)
    assert len(re.findall("TILE", INC.read_text(encoding="utf-8"))) == len(TILES)


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_memory_is_what_the_launcher_asks_for(emulation: ctypes.CDLL, tile: CompiledTile) -> None:
    """Of one pixel; a launch that asks for more than a chip has is refused, after it was asked."""
    for inputs in (8, 16, 24, 40, 80, 112, 160) if tile.expands else (tile.step,):
        if tile.shared_bytes(inputs) > shared_limit(90):
            continue
        outputs = tile.outputs and 8
        x, out = (torch.zeros(1, 1, 1, count).half() for count in (inputs, outputs or tile.step))
        expand = (torch.zeros(tile.step, inputs).half(), torch.zeros(tile.step)) if tile.expands else (None, None)
        project = (torch.zeros(8, tile.step).half(), torch.zeros(8)) if outputs else (None, None)
        emulation.mbv3fast_emulate(90, 0)
        with suppress(KernelError):  # of what is read beyond; but not of what no block has room for
            launch_inverted_residual(
                x,
                *expand,
                torch.zeros(tile.kernel**2, tile.step).half(),
                torch.zeros(tile.step),
                *project,
                out=out,
                pool=None if outputs else torch.zeros(1, 1, tile.step),
                kernel=tile.kernel,
                stride=tile.stride,
                padding=(tile.kernel // 2,) * 4,
                activation=tile.activation,
                tile=tile_of(tile),
            )
        assert last_launch(emulation) == (1, 128, tile.shared_bytes(inputs), 1)


def choice(block: BlockConfig, images: int, height: int, width: int, capability: int = 90) -> Tile:
    """For an output of height x width of a block."""
    return inverted_residual(
        images,
        height,
        width,
        block.in_channels,
        block.expanded,
        0 if block.squeeze else block.out_channels,
        block.kernel,
        block.stride,
        block.activation,
        block.has_expand,
        sms=SMS[capability],
        capability=capability,
    )


def chosen(block: BlockConfig, tile: Tile) -> CompiledTile:
    """The compiled tile of a choice, which must be one for that block."""
    outputs = 0 if block.squeeze else block.out_channels
    geometry = block.kernel, block.stride, block.activation, outputs, block.has_expand
    size = tile["tile_height"], tile["tile_width"], tile["step"]
    (found,) = (t for t in TILES if t.fits(*geometry) and (t.height, t.width, t.step) == size)
    return found


def assert_legal(block: BlockConfig, tile: Tile, capability: int) -> None:
    candidate = chosen(block, tile)
    assert candidate.shared_bytes(block.in_channels) <= 1024 * SHARED[capability]
    steps, splits = ceil(block.expanded / candidate.step), tile["splits"]
    assert splits == 1 or block.squeeze
    assert 0 <= steps - ceil(steps / splits) * (splits - 1) <= steps
    assert (splits - 1) * ceil(steps / splits) < steps, "a block has no step"


def outputs_at_224(variant: str) -> list[tuple[BlockConfig, int]]:
    """Each block with the height of its output."""
    found, size = [], 112
    for block in network(variant).blocks:  # type: ignore[arg-type]
        size //= block.stride
        found.append((block, size))
    return found


@pytest.mark.parametrize("capability", CHIPS)
@pytest.mark.parametrize("variant", ROWS)
def test_every_block_has_a_tile_on_every_chip(variant: str, capability: int) -> None:
    for block, size in outputs_at_224(variant):
        for images in (1, 2, 8, 128, 1000):
            assert_legal(block, choice(block, images, size, size, capability), capability)


@given(
    block=st.sampled_from(BLOCKS),
    images=st.integers(1, 300),
    height=st.integers(1, 200),
    width=st.integers(1, 200),
    capability=st.sampled_from(CHIPS),
)
@settings(deadline=None)
def test_every_size_has_a_tile(block: BlockConfig, images: int, height: int, width: int, capability: int) -> None:
    assert_legal(block, choice(block, images, height, width, capability), capability)


def test_one_image_fills_an_h100_where_the_network_is_wide() -> None:
    for block, size in outputs_at_224("large")[:6]:
        tile = choice(block, 1, size, size)
        assert chosen(block, tile).count(size, size) * tile["splits"] >= 80


@pytest.mark.parametrize("variant", ROWS)
def test_many_images_get_large_tiles(variant: str) -> None:
    for block, size in outputs_at_224(variant):
        few, many = (chosen(block, choice(block, images, size, size)) for images in (1, 128))
        assert few.height * few.width <= many.height * many.width
        candidates = [t for t in TILES if t.fits(*geometry_of(block))]
        largest = max(t.height * t.width for t in candidates)
        assert many.height * many.width >= min(largest, 128)  # the two of the first block are alike


def geometry_of(block: BlockConfig) -> tuple[int, int, str, int, bool]:
    outputs = 0 if block.squeeze else block.out_channels
    return block.kernel, block.stride, block.activation, outputs, block.has_expand


def test_what_no_tile_is_for() -> None:
    row = {"kernel": 3, "stride": 1, "activation": "hardswish", "inputs": 80, "outputs": 80, "expands": True}
    for change in ({}, {"inputs": 88}):
        assert inverted_residual(1, 9, 9, channels=200, **{**row, **change}, capability=86)  # type: ignore[arg-type]
    for lack in ({"outputs": 88}, {"activation": None}, {"stride": 3}, {"kernel": 7}, {"inputs": 400}):
        assert not inverted_residual(1, 9, 9, channels=200, **{**row, **lack}, capability=86)  # type: ignore[arg-type]


SIZES = st.integers(1, 200)
EIGHTS = st.integers(1, 200).map(lambda count: 8 * count)


@given(images=st.integers(1, 300), height=SIZES, width=SIZES, channels=EIGHTS)
@settings(deadline=None)
def test_tiles_of_depthwise_convolutions(images: int, height: int, width: int, channels: int) -> None:
    tile = depthwise_conv(images, height, width, channels)
    threads = tile["tile_height"] * tile["tile_width"] // 4 * tile["groups"]
    assert tile["tile_width"] % 4 == 0
    assert threads % 32 == 0
    assert 0 < threads <= 128


@pytest.mark.parametrize("variant", ROWS)
def test_projections_behind_squeeze_excite(variant: str) -> None:
    """One image wants many small tiles, many images large ones; each tile is compiled: see test_pointwise_conv."""
    for block, size in outputs_at_224(variant):
        if block.squeeze:
            few, many = (pointwise_conv(n, size**2, block.expanded, block.out_channels, scaled=True) for n in (1, 128))
            assert few == {"tile_rows": 16, "tile_outputs": 16}
            assert many["tile_rows"] >= 64


@given(images=st.integers(1, 300), channels=EIGHTS, squeezed=st.integers(1, 400), capability=st.sampled_from(CHIPS))
@settings(deadline=None)
def test_clusters_of_squeeze_excite(images: int, channels: int, squeezed: int, capability: int) -> None:
    tile = excite(images, channels, squeezed, SMS[capability], capability)
    assert tile["cluster"] in ((1, 2, 4, 8) if capability >= 90 else (1,))
    assert tile["images_per_cluster"] in (1, 8)
    assert not (excites_in_two(tile, channels, squeezed) and capability >= 90)


def test_no_block_of_a_network_excites_in_two_launches_on_an_h100() -> None:
    """Small matrices are one block's; on an A100, the largest are two launches'."""
    for block in BLOCKS:
        if block.squeeze:
            assert not excites_in_two(excite(1, block.expanded, block.squeeze), block.expanded, block.squeeze)
    assert not excites_in_two(excite(1, 72, 18, 108, 80), 72, 18)
    assert excites_in_two(excite(1, 960, 240, 108, 80), 960, 240)
