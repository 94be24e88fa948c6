"""`excite` and `squeeze_excite` in CUDA, by the library that runs kernels on the CPU and checks all they do."""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mbv3fast.config import network
from mbv3fast.cuda.launch import ACTIVATIONS, DTYPES
from mbv3fast.cuda.squeeze_excite import excite, squeeze_excite
from mbv3fast.cuda.structs import ExciteArgs, SqueezeExciteArgs
from mbv3fast.cuda.work import work
from mbv3fast.launching import Launch, watch_launches
from mbv3fast.reference import squeeze_excite_ref, squeeze_excite_scale
from mbv3fast.tables import ROWS, Activation
from tests.cuda.harness import assert_seen, count_launches
from tests.guards import Guards
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
REFUSED = 10001


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
        activation: Activation | None = "relu",
    ) -> None:
        torch.manual_seed(channels + squeezed)
        self.library, self.dtype, self.activation = library, dtype, activation
        self.guards = Guards()
        hold = self.guards.hold
        self.x = hold((torch.randn(images, pixels, channels) + torch.randn(images, 1, channels)).to(dtype))
        self.fc1 = hold((torch.randn(squeezed, channels) * 2 / channels**0.5).to(dtype))
        self.fc2 = hold((torch.randn(channels, squeezed) * 2 / squeezed**0.5).to(dtype))
        self.bias1, self.bias2 = hold(torch.randn(squeezed)), hold(torch.randn(channels))
        self.shape = images, pixels, channels, squeezed

    def reference(self, function: Callable[..., Tensor], dtype: torch.dtype) -> Tensor:
        """Of x as [N, C, P, 1], what `function` gives, as [N, P, C]."""
        matrices = [tensor.to(dtype) for tensor in (self.fc1, self.bias1, self.fc2, self.bias2)]
        x = self.x.to(dtype).transpose(1, 2)[..., None]
        return function(x, *matrices, activation=self.activation)[..., 0].transpose(1, 2)

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
        self.library.mbv3fast_emulate(capability, seed)
        code = getattr(self.library, name)(ctypes.byref(args), None)
        assert code == 0, self.library.mbv3fast_error(code).decode()
        self.guards.check()

    def poisoned(self, *shape: int) -> Tensor:
        return self.guards.empty(*shape, dtype=torch.float32)

    def pool(self, tiles: int) -> Tensor:
        parts = [part.float().sum(1) for part in self.x.tensor_split(tiles, 1)]
        return self.guards.hold(torch.stack(parts, 1))

    def excite(
        self, cluster: int, together: int = 1, tiles: int = 1, *, two: bool = False, capability: int = 90, seed: int = 0
    ) -> Tensor:
        images, _, channels, squeezed = self.shape
        scale = self.poisoned(images, channels)
        hidden = self.poisoned(images, squeezed) if two else None
        args = ExciteArgs(tiles=tiles)
        self.fill(args, cluster, together, pool=self.pool(tiles), hidden=hidden, scale=scale)
        self.run("mbv3fast_excite", args, capability, seed)
        return scale

    def squeeze_excite(
        self, cluster: int, together: int = 1, *, two: bool = False, capability: int = 90, seed: int = 0
    ) -> tuple[Tensor, int]:
        """The result, and the tiles of `pool`, 0 where one launch did it."""
        images, _, channels, squeezed = self.shape
        out, tiles = self.guards.empty(*self.x.shape, dtype=self.dtype), ctypes.c_int32(-1)
        args = SqueezeExciteArgs()
        self.fill(args, cluster, together, x=self.x, out=out)
        self.library.mbv3fast_emulate(capability, seed)
        assert self.library.mbv3fast_squeeze_excite_tiles(ctypes.byref(args), ctypes.byref(tiles)) == 0
        if tiles.value:
            pool, scale = self.poisoned(images, tiles.value, channels), self.poisoned(images, channels)
            hidden = self.poisoned(images, squeezed) if two else None
            self.fill(args, cluster, together, x=self.x, out=out, pool=pool, scale=scale, hidden=hidden)
        self.run("mbv3fast_squeeze_excite", args, capability, seed)
        return out, tiles.value


@pytest.mark.parametrize(("channels", "squeezed"), [*SHAPES, *ODD])
def test_excite(emulation: ctypes.CDLL, channels: int, squeezed: int) -> None:
    for dtype in DTYPES:
        one = Case(emulation, channels, squeezed, dtype)
        scale = one.excite(8, tiles=3)
        one.agrees_in_float32(scale)
        # Slices differ, sums and their order don't.
        assert torch.equal(one.excite(1, tiles=3, two=True, capability=80), scale)
        assert torch.equal(one.excite(1, tiles=3), scale)
    many = Case(emulation, channels, squeezed, images=9, pixels=15, activation="hardswish")
    scale = many.excite(2, 8)
    many.agrees_in_float32(scale)
    assert torch.equal(many.excite(1, 8, two=True, capability=80), scale)


@pytest.mark.parametrize(("channels", "squeezed"), [*SHAPES, *ODD])
def test_squeeze_excite(emulation: ctypes.CDLL, channels: int, squeezed: int) -> None:
    one = Case(emulation, channels, squeezed, torch.bfloat16)
    few = Case(emulation, channels, squeezed, images=3, pixels=35)
    for case, cluster in ((one, 8), (few, 2)):
        out, tiles = case.squeeze_excite(cluster)
        assert tiles == 0
        case.agrees(out)
    out, tiles = few.squeeze_excite(1, two=True, capability=80)
    assert tiles > 0
    few.agrees(out)


@pytest.mark.parametrize("shape", [(72, 18), (576, 144)])
def test_clusters_and_orders_of_threads(emulation: ctypes.CDLL, shape: tuple[int, int]) -> None:
    case = Case(emulation, *shape, images=2, pixels=9)
    scale, whole = case.excite(1, tiles=2), case.squeeze_excite(4)[0]
    for seed, cluster in enumerate((1, 2, 4, 8, 16), 1):
        assert torch.equal(case.excite(cluster, tiles=2, seed=seed), scale)
        assert torch.equal(case.squeeze_excite(4, seed=seed)[0], whole)
        case.agrees(case.squeeze_excite(cluster, 8, seed=seed)[0])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("pixels", [1, 7, 1000])
def test_sizes_of_images(emulation: ctypes.CDLL, pixels: int, activation: Activation | None) -> None:
    case = Case(emulation, 16, 4, images=3, pixels=pixels, activation=activation)
    for cluster, capability in ((1, 90), (8, 90), (1, 80)):
        case.agrees(case.squeeze_excite(cluster, two=capability == 80, capability=capability)[0])


def test_images_that_shared_memory_has_no_room_for(emulation: ctypes.CDLL) -> None:
    case = Case(emulation, 240, 60, pixels=1700)
    out, tiles = case.squeeze_excite(2)
    assert tiles > 0
    case.agrees(out)


@pytest.mark.parametrize(
    ("cluster", "together", "two"), [(4, 1, False), (4, 8, False), (1, 1, False), (1, 1, True), (1, 8, True)]
)
@pytest.mark.parametrize("shape", [(72, 18), (288, 72)])
def test_the_launcher_of_python(
    emulation: ctypes.CDLL, shape: tuple[int, int], cluster: int, together: int, two: bool
) -> None:
    """Gives the same, and tells of one launch, or two."""
    case = Case(emulation, *shape, images=11, pixels=5)
    scale, hidden = case.poisoned(11, shape[0]), case.poisoned(11, shape[1]) if two else None
    pool, matrices = case.pool(5), (case.fc1, case.bias1, case.fc2, case.bias2)
    tile = {"cluster": cluster, "images_per_cluster": together}
    seen: list[Launch] = []
    before = count_launches(emulation)
    with watch_launches(seen.append):
        excite(pool, *matrices, hidden=hidden, scale=scale, pixels=5, activation="relu", tile=tile, pdl=True)
    assert_seen(emulation, seen, before)
    assert len(seen) == 1 + two
    assert torch.equal(scale, case.excite(cluster, together, tiles=5, two=two))


@pytest.mark.parametrize(
    ("capability", "cluster", "pixels", "kernels"), [(90, 8, 49, 1), (90, 2, 1700, 3), (80, 1, 49, 4)]
)
def test_the_launcher_of_the_whole(
    emulation: ctypes.CDLL, capability: int, cluster: int, pixels: int, kernels: int
) -> None:
    """Tells of one launch, or of sums, scale in one or two, and product; each does some of the work."""
    case = Case(emulation, 240, 60, pixels=pixels)
    x = case.x.view(case.shape[0], pixels, 1, 240)
    out, matrices = torch.full_like(x, torch.nan), (case.fc1, case.bias1, case.fc2, case.bias2)
    seen: list[Launch] = []
    emulation.mbv3fast_emulate(capability, 0)
    before = count_launches(emulation)
    with watch_launches(seen.append):
        tile = {"cluster": cluster, "images_per_cluster": 1}
        squeeze_excite(x, *matrices, out=out, activation="relu", tile=tile)
    assert_seen(emulation, seen, before)
    assert len(seen) == kernels
    done = [work(launch) for launch in seen]
    assert sum(each.fmas for each in done) >= x.numel() + 2 * 240 * 60 * case.shape[0]
    assert all(each.issued > 0 for each in done)
    case.agrees(out.view_as(case.x))


def test_no_images(emulation: ctypes.CDLL) -> None:
    case = Case(emulation, 16, 4)
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
        ("images", 1 << 62, "images: got 4611686018427387904, needs fewer"),
        ("images", (1 << 63) - 1, "images: got 9223372036854775807, needs fewer"),
        ("squeezed", (1 << 20) + 1, "squeezed: got 1048577, needs 1 to 2^20"),
        ("channels", 1 << 21, "channels: got 2097152, needs no more than 2^20"),
        ("squeezed", 1 << 16, "channels * squeezed: got 1048576, needs fewer: a block has"),
        ("dtype", 0, "dtype: got 0"),
        ("activation", 3, "activation: got 3"),
        ("fc2_weight", None, "fc2_weight: got null"),
        ("scale", None, "scale: got null"),
    ],
)
def test_what_is_refused(emulation: ctypes.CDLL, field: str, value: int | None, words: str) -> None:
    case, given = Case(emulation, 16, 4), torch.zeros(4096)
    excite, whole = ExciteArgs(tiles=1), SqueezeExciteArgs()
    case.fill(excite, 1, 1, pool=given, scale=given)
    case.fill(whole, 1, 1, pool=given, scale=given, x=given, out=given)
    emulation.mbv3fast_emulate(80, 0)
    for function, args in ((emulation.mbv3fast_excite, excite), (emulation.mbv3fast_squeeze_excite, whole)):
        setattr(args, field, value)
        assert function(ctypes.byref(args), None) == REFUSED
        assert words in emulation.mbv3fast_error(REFUSED).decode()
