"""`inverted_residual` in CUDA at every row of both tables, by every tile that is compiled for it."""

from __future__ import annotations

import ctypes

import pytest
import torch

from mbv3fast.cuda.compiled import TILES, CompiledTile
from mbv3fast.cuda.inverted_residual import inverted_residual
from mbv3fast.cuda.launch import Tile
from mbv3fast.cuda.library import KernelError
from tests.cuda.checks import Block, check_inverted_residual
from tests.cuda.harness import DTYPES
from tests.guards import BLOCKS, in_turn

SHAPES = list(dict.fromkeys(map(Block.of, BLOCKS)))
SIZES = [(1, 15, 13), (3, 5, 6), (2, 9, 20)]


def fitting(block: Block) -> list[CompiledTile]:
    found = [tile for tile in TILES if tile.fits(*block[3:6], block.outputs, block.expands)]
    assert len(found) == 2, "one tile for many images and one for few"
    return found


def tile_of(tile: CompiledTile, splits: int = 1) -> Tile:
    return {"tile_height": tile.height, "tile_width": tile.width, "step": tile.step, "splits": splits}


CASES = [(block, tile) for block in SHAPES for tile in fitting(block)]


@pytest.mark.parametrize(("case", "size"), in_turn(CASES, SIZES))
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_row_by_every_tile(
    emulation: ctypes.CDLL, case: tuple[Block, CompiledTile], size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    block, tile = case
    check_inverted_residual(emulation, block, tile_of(tile), size, dtype, seeds=(sum(size),))


# One of each kind: not expanded, projected with stride 1 and 2, sums with stride 1 and 2; odd numbers of eights.
KINDS = {
    "not expanded": Block(16, 16, 16, 3, 1, "relu", True),
    "not expanded, sums": Block(16, 16, 0, 3, 2, "relu"),
    "projected": Block(24, 72, 24, 3, 1, "relu", True),
    "projected, stride 2": Block(40, 88, 80, 3, 2, "hardswish"),
    "sums": Block(40, 120, 0, 5, 1, "relu"),
    "sums, stride 2": Block(24, 72, 0, 5, 2, "relu"),
}
PADDINGS = [(0, 1, 0, 1), (2, 0, 1, 5), (1, 2, 2, 1), (0, 0, 0, 0)]


@pytest.mark.parametrize(("kind", "padding", "index"), in_turn(KINDS, PADDINGS, range(2)))
def test_paddings(emulation: ctypes.CDLL, kind: str, padding: tuple[int, int, int, int], index: int) -> None:
    """Asymmetric ones, and such that windows and whole tiles lie beside the image."""
    block = KINDS[kind]._replace(residual=False)
    check_inverted_residual(emulation, block, tile_of(fitting(block)[index]), (2, 7, 11), padding=padding)


@pytest.mark.parametrize("size", [(1, 1, 1), (2, 1, 17), (1, 16, 8)])
@pytest.mark.parametrize("kind", KINDS)
def test_sizes(emulation: ctypes.CDLL, kind: str, size: tuple[int, int, int]) -> None:
    for tile in fitting(KINDS[kind]):
        check_inverted_residual(emulation, KINDS[kind], tile_of(tile), size)


@pytest.mark.parametrize("kind", KINDS)
def test_orders_of_threads(emulation: ctypes.CDLL, kind: str) -> None:
    for tile in fitting(KINDS[kind]):
        check_inverted_residual(emulation, KINDS[kind], tile_of(tile), (1, 6, 9), seeds=range(5))


@pytest.mark.parametrize("splits", [2, 3, 8])
def test_channels_split_over_blocks(emulation: ctypes.CDLL, splits: int) -> None:
    """Also over more blocks than there are steps."""
    for kind in ("not expanded, sums", "sums"):
        for tile in fitting(KINDS[kind]):
            check_inverted_residual(emulation, KINDS[kind], tile_of(tile, splits), (2, 6, 9))


@pytest.mark.parametrize("kind", ["projected", "projected, stride 2", "not expanded"])
def test_a_residual_that_is_not_the_input(emulation: ctypes.CDLL, kind: str) -> None:
    for tile in fitting(KINDS[kind]):
        check_inverted_residual(emulation, KINDS[kind], tile_of(tile), (1, 7, 9), other_residual=True)


def test_no_images(emulation: ctypes.CDLL) -> None:
    assert emulation
    block = KINDS["projected"]
    call(block, x=torch.zeros(0, 6, 9, 24).half(), out=torch.zeros(0, 6, 9, 24).half())


def call(block: Block, **given: object) -> None:
    """On zeros, but for what is given."""
    inputs, channels, outputs, kernel, stride, activation, _ = block
    out = torch.zeros(1, 6, 9, outputs or channels).half()
    arguments = {
        "x": torch.zeros(1, 6 * stride, 9 * stride, inputs).half(),
        "expand_weight": torch.zeros(channels, inputs).half() if block.expands else None,
        "expand_bias": torch.zeros(channels) if block.expands else None,
        "weight": torch.zeros(kernel**2, channels).half(),
        "bias": torch.zeros(channels),
        "project_weight": torch.zeros(outputs, channels).half() if outputs else None,
        "project_bias": torch.zeros(outputs) if outputs else None,
        "out": out,
        "kernel": kernel,
        "stride": stride,
        "padding": block.padding,
        "activation": activation,
        "tile": tile_of(fitting(block)[1]),
    }
    inverted_residual(**(arguments | given))  # type: ignore[arg-type]


PROJECTED, SUMS = KINDS["projected"], KINDS["sums"]
FEW = torch.zeros(1, 6, 9, 20).half()
TILE = tile_of(fitting(PROJECTED)[1])
ODD = torch.zeros(10_000).half()[1:]  # of an address that is no multiple of 16


@pytest.mark.parametrize(
    ("block", "given", "words"),
    [
        (PROJECTED, {"out": ODD[: 6 * 9 * 24].view(1, 6, 9, 24)}, "out: needs to be aligned to 16 bytes"),
        (PROJECTED, {"expand_bias": None}, "expand_bias: got null, needs a tensor"),
        (PROJECTED, {"project_bias": None}, "project_bias: got null, needs a tensor"),
        (SUMS, {"pool": None}, "pool: got null, needs a tensor"),
        (SUMS, {"residual": FEW, "pool": torch.zeros(8)}, "residual: needs a projection that it is added to"),
        (PROJECTED, {"x": FEW}, "inputs: got 20, needs a multiple of 8"),
        (PROJECTED, {"weight": torch.zeros(9, 68).half()}, "channels: got 68, needs a multiple of 8"),
        (PROJECTED, {"out": FEW}, "outputs: got 20, needs a multiple of 8"),
        (KINDS["not expanded"], {"x": torch.zeros(1, 6, 9, 24).half()}, "inputs: got 24, needs as many as channels"),
        (PROJECTED, {"x": torch.zeros(1, 0, 9, 24).half()}, "x: got null, needs a tensor"),
        (PROJECTED, {"padding": (1, 1, 3, 1)}, "top: got 3, needs less than the kernel"),
        (PROJECTED, {"padding": (-1, 1, 1, 1)}, "left: got -1, needs less than the kernel"),
        (
            PROJECTED,
            {"tile": {**TILE, "splits": 2}},
            "splits: got 2, needs 1 or more, up to the channels, 1",
        ),
        (SUMS, {"pool": torch.zeros(1), "tile": {**TILE, "splits": 0}}, "splits: got 0, needs 1 or more"),
        (PROJECTED, {"tile": {**TILE, "tile_height": 5}}, "tile_height, tile_width, step, outputs: no such tile"),
        (PROJECTED, {"activation": None}, "kernel, stride, activation, tile_height, tile_width, step, outputs: no"),
        (PROJECTED, {"kernel": 7}, "kernel: got 7, needs 3 or 5"),
    ],
)
def test_what_is_refused(emulation: ctypes.CDLL, block: Block, given: dict[str, object], words: str) -> None:
    assert emulation
    with pytest.raises(KernelError) as caught:
        call(block, **given)
    assert str(caught.value).startswith("inverted_residual: ")
    assert words in str(caught.value)
