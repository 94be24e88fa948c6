"""`excite` and `squeeze_excite` in CUDA, by the library that runs kernels on the CPU and checks all they do."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mbv3fast.config import network
from mbv3fast.reference import squeeze_excite_ref, squeeze_excite_scale
from mbv3fast.tables import ROWS
from tests.numerics import assert_agrees

SHAPES = sorted(
    {
        (block.expanded, block.squeeze)
        for variant in ROWS
        for divisor in (1, 8)
        for block in network(variant, se_divisor=divisor).blocks
        if block.squeeze
    }
)
ODD = [(8, 1), (24, 7), (640, 74)]  # no network's: one unit, an odd number, twice an odd one
DTYPES = {torch.float16: 1, torch.bfloat16: 2}
ACTIVATIONS = {"none": 0, "relu": 1, "hardswish": 2}
REFUSED = 10001
POINTERS = {"pool", "x", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "out", "hidden", "scale"}


def fields(*names: str) -> list[tuple[str, type]]:
    return [
        (n, ctypes.c_void_p if n in POINTERS else ctypes.c_int64 if n == "images" else ctypes.c_int32) for n in names
    ]


WEIGHTS = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
OPTIONS = ("channels", "squeezed", "dtype", "activation", "cluster", "images_per_cluster", "overlapped")


class ExciteArgs(ctypes.Structure):
    _fields_ = fields("pool", *WEIGHTS, "hidden", "scale", "images", "tiles", "pixels", *OPTIONS)


class SqueezeExciteArgs(ctypes.Structure):
    _fields_ = fields("x", *WEIGHTS, "out", "pool", "hidden", "scale", "images", "pixels", *OPTIONS)


@pytest.fixture(scope="session")
def emulated() -> ctypes.CDLL:
    path = os.environ.get("MBV3FAST_EMULATED_LIBRARY")
    if not path:
        pytest.skip("MBV3FAST_EMULATED_LIBRARY names no library")
    library = ctypes.CDLL(path)
    library.mbv3fast_error.restype = ctypes.c_char_p
    return library


class Case:
    """An image batch and weights; `excite` and `squeeze_excite` of them, each into poisoned memory."""

    def __init__(
        self,
        library: ctypes.CDLL,
        channels: int,
        squeezed: int,
        dtype: torch.dtype = torch.float16,
        images: int = 1,
        pixels: int = 49,
        activation: str = "relu",
    ) -> None:
        torch.manual_seed(channels + squeezed)
        self.library, self.dtype, self.activation = library, dtype, activation
        self.x = (torch.randn(images, pixels, channels) + torch.randn(images, 1, channels)).to(dtype)
        self.fc1 = (torch.randn(squeezed, channels) * 2 / channels**0.5).to(dtype)
        self.fc2 = (torch.randn(channels, squeezed) * 2 / squeezed**0.5).to(dtype)
        self.bias1, self.bias2 = torch.randn(squeezed), torch.randn(channels)
        self.shape = images, pixels, channels, squeezed

    def reference(self, function: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        """Of x as [N, C, P, 1], what `function` gives, as [N, P, C]."""
        matrices = [tensor.to(dtype) for tensor in (self.fc1, self.bias1, self.fc2, self.bias2)]
        x = self.x.to(dtype).transpose(1, 2)[..., None]
        activation = None if self.activation == "none" else self.activation
        return function(x, *matrices, activation=activation)[..., 0].transpose(1, 2)

    def agrees(self, out: Tensor) -> None:
        truth = self.reference(squeeze_excite_ref, torch.float64)
        assert_agrees(out, self.reference(squeeze_excite_ref, self.dtype), truth)

    def agrees_in_float32(self, scale: Tensor) -> None:
        truth = self.reference(squeeze_excite_scale, torch.float64)
        assert (scale[:, None] - truth).abs().max() < 2e-6

    def fill(self, args: ctypes.Structure, cluster: int, together: int, **tensors: Tensor | None) -> None:
        images, args.pixels, args.channels, args.squeezed = self.shape
        args.images, args.cluster, args.images_per_cluster, args.overlapped = images, cluster, together, 1
        args.dtype, args.activation = DTYPES[self.dtype], ACTIVATIONS[self.activation]
        matrices = {"fc1_weight": self.fc1, "fc1_bias": self.bias1, "fc2_weight": self.fc2, "fc2_bias": self.bias2}
        for name, tensor in (matrices | tensors).items():
            setattr(args, name, None if tensor is None else tensor.data_ptr())

    def run(self, name: str, args: ctypes.Structure, capability: int, seed: int) -> None:
        self.library.mbv3fast_emulate(capability, ctypes.c_uint64(seed))
        code = getattr(self.library, name)(ctypes.byref(args), None)
        assert code == 0, self.library.mbv3fast_error(code).decode()

    def excite(
        self, cluster: int, together: int = 1, tiles: int = 1, *, two: bool = False, capability: int = 90, seed: int = 0
    ) -> Tensor:
        images, _, channels, squeezed = self.shape
        pool = torch.stack([part.float().sum(1) for part in self.x.tensor_split(tiles, 1)], 1).contiguous()
        scale = torch.full((images, channels), torch.nan)
        hidden = torch.full((images, squeezed), torch.nan) if two else None
        args = ExciteArgs(tiles=tiles)
        self.fill(args, cluster, together, pool=pool, hidden=hidden, scale=scale)
        self.run("mbv3fast_excite", args, capability, seed)
        return scale

    def squeeze_excite(
        self, cluster: int, together: int = 1, *, two: bool = False, capability: int = 90, seed: int = 0
    ) -> tuple[Tensor, int]:
        """The result, and the tiles of `pool`, 0 where one launch did it."""
        images, _, channels, squeezed = self.shape
        out, tiles = torch.full_like(self.x, torch.nan), ctypes.c_int32(-1)
        args = SqueezeExciteArgs()
        self.fill(args, cluster, together, x=self.x, out=out)
        self.library.mbv3fast_emulate(capability, ctypes.c_uint64(seed))
        assert self.library.mbv3fast_squeeze_excite_tiles(ctypes.byref(args), ctypes.byref(tiles)) == 0
        if tiles.value:
            pool = torch.full((images, tiles.value, channels), torch.nan)
            scale = torch.full((images, channels), torch.nan)
            hidden = torch.full((images, squeezed), torch.nan) if two else None
            self.fill(args, cluster, together, x=self.x, out=out, pool=pool, scale=scale, hidden=hidden)
        self.run("mbv3fast_squeeze_excite", args, capability, seed)
        return out, tiles.value


@pytest.mark.parametrize(("channels", "squeezed"), [*SHAPES, *ODD])
def test_excite(emulated: ctypes.CDLL, channels: int, squeezed: int) -> None:
    for dtype in DTYPES:
        one = Case(emulated, channels, squeezed, dtype)
        scale = one.excite(8, tiles=3)
        one.agrees_in_float32(scale)
        # Slices differ, sums and their order don't.
        assert torch.equal(one.excite(1, tiles=3, two=True, capability=80), scale)
        assert torch.equal(one.excite(1, tiles=3), scale)
    many = Case(emulated, channels, squeezed, images=9, pixels=15, activation="hardswish")
    scale = many.excite(2, 8)
    many.agrees_in_float32(scale)
    assert torch.equal(many.excite(1, 8, two=True, capability=80), scale)


@pytest.mark.parametrize(("channels", "squeezed"), [*SHAPES, *ODD])
def test_squeeze_excite(emulated: ctypes.CDLL, channels: int, squeezed: int) -> None:
    one = Case(emulated, channels, squeezed, torch.bfloat16)
    few = Case(emulated, channels, squeezed, images=3, pixels=35)
    for case, cluster in ((one, 8), (few, 2)):
        out, tiles = case.squeeze_excite(cluster)
        assert tiles == 0
        case.agrees(out)
    out, tiles = few.squeeze_excite(1, two=True, capability=80)
    assert tiles > 0
    few.agrees(out)


@pytest.mark.parametrize("shape", [(72, 18), (576, 144)])
def test_clusters_and_orders_of_threads(emulated: ctypes.CDLL, shape: tuple[int, int]) -> None:
    case = Case(emulated, *shape, images=2, pixels=9)
    scale, whole = case.excite(1, tiles=2), case.squeeze_excite(4)[0]
    for seed, cluster in enumerate((1, 2, 4, 8, 16), 1):
        assert torch.equal(case.excite(cluster, tiles=2, seed=seed), scale)
        assert torch.equal(case.squeeze_excite(4, seed=seed)[0], whole)
        case.agrees(case.squeeze_excite(cluster, 8, seed=seed)[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pixels", [1, 7, 1000])
def test_sizes_of_images(emulated: ctypes.CDLL, pixels: int, activation: str) -> None:
    case = Case(emulated, 16, 4, images=3, pixels=pixels, activation=activation)
    for cluster, capability in ((1, 90), (8, 90), (1, 80)):
        case.agrees(case.squeeze_excite(cluster, two=capability == 80, capability=capability)[0])


def test_images_that_shared_memory_has_no_room_for(emulated: ctypes.CDLL) -> None:
    case = Case(emulated, 240, 60, pixels=1700)
    out, tiles = case.squeeze_excite(2)
    assert tiles > 0
    case.agrees(out)


def test_no_images(emulated: ctypes.CDLL) -> None:
    case = Case(emulated, 16, 4)
    case.shape = 0, *case.shape[1:]
    given, scale = torch.zeros(784), torch.full((16,), torch.nan)
    excite, whole = ExciteArgs(tiles=1), SqueezeExciteArgs()
    case.fill(excite, 8, 1, pool=given, scale=scale)
    case.fill(whole, 8, 1, x=given, out=scale)
    case.run("mbv3fast_excite", excite, 90, 0)
    case.run("mbv3fast_squeeze_excite", whole, 90, 0)
    assert scale.isnan().all()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("cluster", 3, "cluster: got 3, needs 1, 2, 4, 8 or 16"),
        ("cluster", 8, "clusters came with 9.0"),
        ("images_per_cluster", 2, "images_per_cluster: got 2, needs 1 or 8"),
        ("channels", 12, "channels: got 12, needs a multiple of 8"),
        ("squeezed", 0, "squeezed: got 0"),
        ("pixels", 0, "pixels: got 0"),
        ("images", -1, "images: got -1"),
        ("images", 1 << 31, "blocks: got"),
        ("dtype", 0, "dtype: got 0"),
        ("activation", 3, "activation: got 3"),
        ("fc2_weight", None, "fc2_weight: got null"),
        ("scale", None, "scale: got null"),
    ],
)
def test_what_is_refused(emulated: ctypes.CDLL, field: str, value: int | None, words: str) -> None:
    case, given = Case(emulated, 16, 4), torch.zeros(4096)
    excite, whole = ExciteArgs(tiles=1), SqueezeExciteArgs()
    case.fill(excite, 1, 1, pool=given, scale=given)
    case.fill(whole, 1, 1, pool=given, scale=given, x=given, out=given)
    emulated.mbv3fast_emulate(80, ctypes.c_uint64(0))
    for function, args in ((emulated.mbv3fast_excite, excite), (emulated.mbv3fast_squeeze_excite, whole)):
        setattr(args, field, value)
        assert function(ctypes.byref(args), None) == REFUSED
        assert words in emulated.mbv3fast_error(REFUSED).decode()
