"""`pointwise_conv` in CUDA at every shape of both networks, by every tile, with all that may stand around it."""

from __future__ import annotations

import ctypes

import pytest
import torch

from mbv3fast.cuda import tiles
from mbv3fast.cuda.launch import Tile
from mbv3fast.cuda.library import KernelError
from mbv3fast.cuda.pointwise_conv import pointwise_conv
from mbv3fast.tables import Activation
from tests.cuda.checks import check_pointwise_conv
from tests.cuda.harness import DTYPES
from tests.guards import BLOCKS, in_turn

Shape = tuple[int, int, Activation | None, bool, bool]  # inputs, outputs, activation, whether scaled, with a residual
EXPANDS = {(b.in_channels, b.expanded, b.activation, False, False) for b in BLOCKS if b.has_expand}
PROJECTS = {(b.expanded, b.out_channels, None, bool(b.squeeze), b.has_residual) for b in BLOCKS}
LASTS: set[Shape] = {(160, 960, "hardswish", False, False), (96, 576, "hardswish", False, False)}
SHAPES = sorted(EXPANDS | PROJECTS | LASTS, key=str)
TILES = [(16, 16), (16, 48), (32, 32), (64, 48), (64, 80), (128, 48), (128, 80)]
SIZES = [(1, 7, 7), (3, 5, 6), (2, 9, 8)]


def tile_of(rows: int, outputs: int) -> Tile:
    return {"tile_rows": rows, "tile_outputs": outputs}


@pytest.mark.parametrize(("shape", "tile", "dtype"), in_turn(SHAPES, TILES, DTYPES))
def test_every_shape(emulation: ctypes.CDLL, shape: Shape, tile: tuple[int, int], dtype: torch.dtype) -> None:
    inputs, outputs, activation, scaled, added = shape
    size = SIZES[inputs // 8 % len(SIZES)]
    options = {"scaled": scaled, "added": added, "seeds": (outputs,)}
    check_pointwise_conv(emulation, inputs, outputs, activation, tile_of(*tile), size, dtype, **options)  # type: ignore[arg-type]


# Slices of 64 inputs a warp: less than one, one and a tail of 8, tails of 16 and more, several.
@pytest.mark.parametrize("inputs", [8, 24, 64, 72, 136, 200, 520])
@pytest.mark.parametrize("tile", TILES)
def test_every_tile(emulation: ctypes.CDLL, tile: tuple[int, int], inputs: int) -> None:
    """Tiles that stick out by rows and outputs; scaled ones end with their image."""
    for scaled in (False, True):
        options = {"scaled": scaled, "added": scaled}
        check_pointwise_conv(emulation, inputs, 88, "hardswish", tile_of(*tile), (3, 1, 11), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("tile", TILES)
def test_many_tiles(emulation: ctypes.CDLL, tile: tuple[int, int]) -> None:
    check_pointwise_conv(emulation, 40, 168, "relu", tile_of(*tile), (2, 11, 13), added=True)
    check_pointwise_conv(emulation, 40, 168, None, tile_of(*tile), (2, 11, 13), torch.bfloat16, scaled=True)


@pytest.mark.parametrize("tile", [(16, 48), (32, 32), (128, 80)])
def test_orders_of_threads(emulation: ctypes.CDLL, tile: tuple[int, int]) -> None:
    options = {"scaled": True, "added": True, "seeds": range(5)}
    check_pointwise_conv(emulation, 136, 56, None, tile_of(*tile), (2, 3, 5), **options)  # type: ignore[arg-type]


def test_tiles_are_the_librarys() -> None:
    """Those that are chosen from, and tested here; another one is refused below."""
    assert set(TILES) == set(tiles._POINTWISE_TILES)


def call(**given: object) -> None:
    """On zeros, but for what is given."""
    arguments = {
        "x": torch.zeros(2, 3, 5, 16).half(),
        "weight": torch.zeros(24, 16).half(),
        "bias": torch.zeros(24),
        "out": torch.zeros(2, 3, 5, 24).half(),
        "activation": None,
        "tile": tile_of(16, 16),
    }
    pointwise_conv(**(arguments | given))  # type: ignore[arg-type]


def test_no_images(emulation: ctypes.CDLL) -> None:
    assert emulation
    call(x=torch.zeros(0, 3, 5, 16).half(), out=torch.zeros(0, 3, 5, 24).half())


ODD = torch.zeros(1000).half()[1:]  # of an address that is no multiple of 16


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"out": ODD[: 30 * 24].view(2, 3, 5, 24)}, "out: needs to be aligned to 16 bytes"),
        ({"x": torch.zeros(2, 3, 5, 12).half()}, "inputs: got 12, needs a multiple of 8"),
        ({"weight": torch.zeros(20, 16).half()}, "outputs: got 20, needs a multiple of 8"),
        ({"tile": tile_of(16, 32)}, "tile_rows, tile_outputs: got 16, 32, needs 16, 16; 16, 48; 32, 32; 64, 48;.*"),
    ],
)
def test_what_is_refused(emulation: ctypes.CDLL, given: dict[str, object], words: str) -> None:
    assert emulation
    with pytest.raises(KernelError, match=f"^pointwise_conv: {words}$"):
        call(**given)
