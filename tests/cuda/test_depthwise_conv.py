"""`depthwise_conv` in CUDA at every row of both tables: its output, and the sums of its tiles."""

from __future__ import annotations

import ctypes
import itertools

import pytest
import torch

from mbv3fast.cuda import tiles
from mbv3fast.cuda.depthwise_conv import depthwise_conv
from mbv3fast.cuda.launch import Tile
from mbv3fast.cuda.library import KernelError
from mbv3fast.tables import Activation
from tests.cuda.checks import check_depthwise_conv
from tests.cuda.harness import DTYPES, Window
from tests.guards import BLOCKS, in_turn

Shape = tuple[int, int, int, Activation]  # channels, kernel, stride, activation
SHAPES: list[Shape] = sorted({(b.expanded, b.kernel, b.stride, b.activation) for b in BLOCKS})
SIZES = [(1, 15, 13), (3, 5, 6), (2, 9, 20)]


def tile_of(height: int, width: int, groups: int) -> Tile:
    return {"tile_height": height, "tile_width": width, "groups": groups}


@pytest.mark.parametrize(("shape", "images", "size", "dtype"), in_turn(SHAPES, [1, 128], SIZES, DTYPES))
def test_every_row(
    emulation: ctypes.CDLL, shape: Shape, images: int, size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    """By the tile that so many images have."""
    channels, kernel, stride, activation = shape
    window = Window(kernel, stride, (kernel // 2,) * 4)
    tile = tiles.depthwise_conv(images, *window.out_size(14 * stride, 14 * stride), channels)
    check_depthwise_conv(emulation, channels, window, activation, tile, size, dtype, seeds=(sum(size),))


TILES = [(1, 4, 32), (32, 4, 1), (4, 16, 2), (2, 4, 16), (8, 8, 4), (16, 32, 4), (3, 32, 4), (1, 128, 1), (6, 4, 16)]


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("pooled", [True, False])
def test_every_kind_of_tile(emulation: ctypes.CDLL, tile: tuple[int, int, int], pooled: bool) -> None:
    for kernel, stride in ((3, 2), (5, 1)):
        window = Window(kernel, stride, (1, 1, 1, 1))
        check_depthwise_conv(emulation, 72, window, "relu", tile_of(*tile), (2, 11, 9), pooled=pooled)


PADDINGS = [(0, 1, 0, 1), (2, 0, 1, 5), (1, 2, 2, 1), (0, 0, 0, 0)]
ACTIVATIONS: list[Activation | None] = [None, "relu", "hardswish"]
GEOMETRIES = list(itertools.product(PADDINGS, (3, 5), (1, 2)))


@pytest.mark.parametrize(("geometry", "activation", "dtype"), in_turn(GEOMETRIES, ACTIVATIONS, DTYPES))
def test_paddings_and_activations(
    emulation: ctypes.CDLL,
    geometry: tuple[tuple[int, int, int, int], int, int],
    activation: Activation | None,
    dtype: torch.dtype,
) -> None:
    padding, kernel, stride = geometry
    window = Window(kernel, stride, padding)
    check_depthwise_conv(emulation, 24, window, activation, tile_of(4, 8, 4), (2, 7, 11), dtype)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 17), (1, 19, 1)])
def test_sizes(emulation: ctypes.CDLL, size: tuple[int, int, int]) -> None:
    check_depthwise_conv(emulation, 8, Window(5, 2, (2, 2, 2, 2)), "hardswish", tile_of(2, 4, 16), size)


@pytest.mark.parametrize("stride", [1, 2])
def test_orders_of_threads(emulation: ctypes.CDLL, stride: int) -> None:
    window = Window(5, stride, (2, 2, 2, 2))
    check_depthwise_conv(emulation, 88, window, "hardswish", tile_of(4, 8, 8), (2, 9, 9), seeds=range(8))


def call(**given: object) -> None:
    """On zeros, but for what is given."""
    arguments = {
        "x": torch.zeros(1, 6, 9, 16).half(),
        "weight": torch.zeros(9, 16).half(),
        "bias": torch.zeros(16),
        "out": torch.zeros(1, 6, 9, 16).half(),
        "kernel": 3,
        "stride": 1,
        "padding": (1, 1, 1, 1),
        "activation": None,
        "tile": tile_of(4, 8, 4),
    }
    depthwise_conv(**(arguments | given))  # type: ignore[arg-type]


def test_no_images(emulation: ctypes.CDLL) -> None:
    assert emulation
    none = torch.zeros(0, 6, 9, 16).half()
    call(x=none, out=none)


ODD = torch.zeros(1000).half()[1:]  # of an address that is no multiple of 16


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"out": ODD[: 6 * 9 * 16].view(1, 6, 9, 16)}, "out: needs to be aligned to 16 bytes"),
        ({"pool": torch.zeros(17)[1:]}, "pool: needs to be aligned to 16 bytes"),
        ({"x": torch.zeros(1, 6, 9, 12).half()}, "channels: got 12, needs a multiple of 8"),
        ({"kernel": 4}, "kernel: got 4, needs 3 or 5"),
        ({"stride": 3}, "stride: got 3, needs 1 or 2"),
        ({"padding": (3, 1, 1, 1)}, "left: got 3, needs less than the kernel"),
        ({"padding": (1, 1, -1, 1)}, "top: got -1, needs less than the kernel"),
        ({"tile": tile_of(-1, 8, 4)}, "tile_height: got -1, needs 1 to 512"),
        ({"tile": tile_of(4, 6, 4)}, "tile_width: got 6, needs a multiple of 4"),
        ({"tile": tile_of(4, 8, -1)}, "groups: got -1, needs 1 to 512"),
        (
            {"tile": tile_of(3, 4, 5)},
            r".* \* groups: got 15, needs a multiple of 32, at most 512: threads",
        ),
        (
            {"tile": tile_of(32, 32, 4)},
            r".* \* groups: got 1024, needs a multiple of 32, at most 512: threads",
        ),
    ],
)
def test_what_is_refused(emulation: ctypes.CDLL, given: dict[str, object], words: str) -> None:
    assert emulation
    with pytest.raises(KernelError, match=f"^depthwise_conv: {words}$"):
        call(**given)
