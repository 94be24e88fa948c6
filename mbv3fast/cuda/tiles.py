"""How CUDA launches are cut into blocks: pure functions of an op's shape, the number of images and the GPU.

Few images starve a chip: many small tiles, each of few steps. Many fill it: large tiles, whose windows overlap little.
The times that choices go by are guesses at a multiprocessor's cycles, good to tell one tile from another, no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from mbv3fast.cuda.launch import Tile

SHARED = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 100: 227, 120: 99}  # KB that a block may have
_SHARED_OF_CHIP = {75: 64, 80: 164, 86: 100, 87: 164, 89: 100, 90: 228, 100: 228, 120: 100}  # KB a multiprocessor has
_RESERVED = 1024  # bytes of a block's shared memory that are CUDA's own
_THREADS = 128  # of a block of `inverted_residual`
_PRODUCTS, _SUMS = 400, 45  # multiply-adds a cycle of a multiprocessor that its tensor and CUDA cores reach
_STEP, _START = 1500, 4000  # cycles of the barriers and waits of a step, and until the first
_CLUSTERS = 90  # capability from which blocks form clusters


def inverted_residual(
    images: int,
    out_height: int,
    out_width: int,
    inputs: int,
    channels: int,
    outputs: int,
    kernel: int,
    stride: int,
    activation: str | None,
    expands: bool,
    others: bool = False,
    sms: int = 132,
    capability: int = 90,
) -> Tile:
    """For an output [images, out_height, out_width, outputs]; outputs 0: nothing is projected. others: whether other
    kernels can do the block, a launch for each convolution. Empty where no tile that is compiled fits, or where these
    are thought to be faster.
    """
    if others and not expands and not outputs:
        return {}  # nothing is kept from memory, and squeeze-excite takes launches of its own
    cases = _cases(channels, inputs, outputs, kernel, stride, activation, expands, 1024 * _shared(SHARED, capability))

    def cycles(case: tuple[CompiledTile, int]) -> float:
        candidate, splits = case
        blocks = images * candidate.count(out_height, out_width) * splits
        steps = ceil(ceil(channels / candidate.step) / splits)
        busy = ceil(blocks / sms) * candidate.cycles(inputs, steps)
        waits = ceil(blocks / (sms * candidate.resident(inputs, capability))) * (_START + steps * _STEP)
        return max(busy, waits) + 0.1 * min(busy, waits)

    best = min(cases, key=cycles, default=None)
    return {} if best is None else best[0].tile(best[1])


def _cases(
    channels: int,
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    activation: str | None,
    expands: bool,
    shared_bytes: float,
) -> Iterator[tuple[CompiledTile, int]]:
    """Tiles that are compiled for a block and fit so much shared memory; each with ways to split the channels."""
    for candidate in TILES:
        fits = candidate.fits(kernel, stride, activation, outputs, expands)
        if fits and candidate.shared_bytes(inputs) <= shared_bytes:
            for splits in _splits(ceil(channels / candidate.step), outputs):
                yield candidate, splits


@dataclass(frozen=True)
class CompiledTile:
    """A line of csrc/inverted_residual_tiles.inc. outputs: the most that it projects to, 0 where it doesn't."""

    kernel: int
    stride: int
    activation: str
    height: int
    width: int
    strip: tuple[int, int]
    step: int
    outputs: int
    expands: bool

    def fits(self, kernel: int, stride: int, activation: str | None, outputs: int, expands: bool) -> bool:
        same = (self.kernel, self.stride, self.activation, self.expands) == (kernel, stride, activation, expands)
        return same and (0 < outputs <= self.outputs if outputs else self.outputs == 0)

    def tile(self, splits: int) -> Tile:
        """As a launch has it."""
        return {"tile_height": self.height, "tile_width": self.width, "step": self.step, "splits": splits}

    @property
    def window(self) -> tuple[int, int]:
        """Input pixels of a tile."""
        height, width = ((size - 1) * self.stride + self.kernel for size in (self.height, self.width))
        return height, width

    def count(self, out_height: int, out_width: int) -> int:
        """Tiles of an image."""
        return ceil(out_height / self.height) * ceil(out_width / self.width)

    def shared_bytes(self, inputs: int) -> int:
        """As `Layout` of csrc/inverted_residual.cuh has it."""
        height, width = self.window
        pitch, input_pitch, rows = _pitch(self.step), _pitch(inputs), _round_up(self.height * self.width, 16)
        input_rows = _round_up(height * width, 16 if self.step >= 64 else 32)
        columns = _round_up(self.outputs, 16 * (4 // min(4, 1 if rows < 32 else 2 if rows < 64 else 4)))
        weights = 2 * (self.kernel**2 * self.step + columns * pitch) + 4 * self.step
        memory = 2 * (height * width + rows) * pitch + 4 * input_rows
        if self.expands:
            weights += 2 * self.step * input_pitch + 4 * self.step
            memory += 2 * input_rows * input_pitch
        if not self.outputs:
            memory += 4 * (_THREADS // (self.step // 2)) * self.step
        before = input_rows * input_pitch if self.expands else height * width * pitch
        staged = 2 * (before + rows * _pitch(self.outputs)) if self.outputs else 0
        return max(memory + 2 * weights, staged)

    def resident(self, inputs: int, capability: int) -> int:
        """Blocks that a multiprocessor's shared memory and registers hold at once."""
        each = self.shared_bytes(inputs) + _RESERVED
        registers = 2 if self.kernel == 5 or self.outputs > 32 else 3  # as kBlocks of csrc/inverted_residual.cuh
        return max(1, min(registers, 1024 * _shared(_SHARED_OF_CHIP, capability) // each))

    def cycles(self, inputs: int, steps: int) -> float:
        """Of a multiprocessor for a block's arithmetic."""
        height, width = self.window
        pixels, channels = self.height * self.width, steps * self.step
        products = (height * width * inputs if self.expands else 0) + pixels * self.outputs
        return channels * (products / _PRODUCTS + pixels * self.kernel**2 / _SUMS)


def _tile(
    kernel: int,
    stride: int,
    activation: str,
    size: tuple[int, int],
    strip: tuple[int, int],
    step: int,
    outputs: int = 0,
    expands: bool = True,
) -> CompiledTile:
    return CompiledTile(kernel, stride, activation, *size, strip, step, outputs, expands)


TILES = (
    _tile(3, 1, "relu", (14, 14), (2, 7), 16, 16, expands=False),
    _tile(3, 1, "relu", (8, 16), (2, 4), 16, 16, expands=False),
    _tile(3, 2, "relu", (14, 7), (2, 7), 32, 32),
    _tile(3, 2, "relu", (4, 8), (2, 4), 32, 32),
    _tile(3, 1, "relu", (14, 14), (2, 7), 16, 32),
    _tile(3, 1, "relu", (4, 8), (2, 4), 32, 32),
    _tile(3, 2, "hardswish", (14, 7), (2, 7), 32, 80),
    _tile(3, 2, "hardswish", (4, 8), (2, 4), 64, 80),
    _tile(3, 1, "hardswish", (14, 7), (2, 7), 32, 80),
    _tile(3, 1, "hardswish", (4, 8), (2, 4), 64, 80),
    _tile(5, 2, "relu", (14, 14), (2, 7), 16),
    _tile(5, 2, "relu", (4, 8), (2, 4), 32),
    _tile(5, 1, "relu", (14, 14), (2, 7), 32),
    _tile(5, 1, "relu", (4, 8), (2, 4), 32),
    _tile(3, 1, "hardswish", (14, 14), (2, 7), 64),
    _tile(3, 1, "hardswish", (8, 8), (2, 4), 16),
    _tile(5, 2, "hardswish", (7, 7), (1, 7), 64),
    _tile(5, 2, "hardswish", (4, 8), (2, 4), 16),
    _tile(5, 1, "hardswish", (7, 7), (1, 7), 64),
    _tile(5, 1, "hardswish", (4, 8), (2, 4), 32),
    _tile(3, 2, "relu", (14, 14), (2, 7), 16, expands=False),
    _tile(3, 2, "relu", (4, 8), (2, 4), 16, expands=False),
)


def find(tile: Mapping[str, Any], sizes: Mapping[str, int], expands: bool) -> CompiledTile:
    """That of a launch. Raises LookupError where none is compiled."""
    cut = tile["tile_height"], tile["tile_width"], tile["step"]
    geometry = sizes["kernel"], sizes["stride"], tile["ACTIVATION"], sizes["outputs"], expands
    for known in TILES:
        if (known.height, known.width, known.step) == cut and known.fits(*geometry):
            return known
    raise LookupError(f"{cut} for {geometry}: no such tile is compiled")


def depthwise_conv(
    images: int, out_height: int, out_width: int, channels: int, sms: int = 132, capability: int = 90
) -> Tile:
    """For an output [images, out_height, out_width, channels]: 128 threads a block, in shapes that waste few."""
    del capability
    groups = min((16, 8, 4, 2), key=lambda count: (ceil(channels / (8 * count)) * count, -count))
    strips = 128 // groups
    shapes = [(strips // columns, 4 * columns) for columns in (1, 2, 4) if strips % columns == 0]

    def wasted(shape: tuple[int, int]) -> tuple[int, int]:
        height, width = shape
        return ceil(out_height / height) * height * ceil(out_width / width) * width, abs(height - width)

    height, width = min(shapes, key=wasted)
    while height % 2 == 0 and groups * height * width // 8 >= 32:  # smaller blocks where they are few
        if images * ceil(out_height / height) * ceil(out_width / width) * ceil(channels / (8 * groups)) >= sms:
            break
        height //= 2
    return {"tile_height": height, "tile_width": width, "groups": groups}


_POINTWISE_TILES = ((16, 16), (16, 48), (32, 32), (64, 48), (64, 80), (128, 48), (128, 80))  # as csrc has them


def pointwise_conv(
    images: int, pixels: int, inputs: int, outputs: int, scaled: bool = False, sms: int = 132, capability: int = 90
) -> Tile:
    """For a product [images * pixels, inputs] x [inputs, outputs]; where it is `scaled`, tiles end with their image."""
    del capability
    rows, groups = (pixels, images) if scaled else (images * pixels, 1)

    def cycles(tile: tuple[int, int]) -> float:
        height, width = tile
        blocks = groups * ceil(rows / height) * ceil(outputs / width)
        split = {16: 4, 32: 2}.get(height, 1)  # warps that share the inputs
        waits = ceil(inputs / (64 * split)) * 500
        busy = inputs * (height * width / _PRODUCTS + (height + width) / 32)  # products, and what must be read for them
        return ceil(blocks / sms) * busy + ceil(blocks / (4 * sms)) * waits

    height, width = min(_POINTWISE_TILES, key=cycles)
    return {"tile_rows": height, "tile_outputs": width}


_SLICE = 8192  # bytes of squeeze-excite's matrices that are worth a block of a cluster
_LAUNCH = 128 * 1024  # those that a block reads while a second launch would start


def excite(images: int, channels: int, squeezed: int, sms: int = 132, capability: int = 90) -> Tile:
    """For the scales [images, channels]: clusters where the chip has them, as large as their matrices want."""
    if capability < _CLUSTERS:
        blocks = images * (ceil(squeezed / 8) if _want_two_launches(channels, squeezed) else 1)
        return {"cluster": 1, "images_per_cluster": 8 if blocks > 16 * sms else 1}
    cluster = next((count for count in (8, 4, 2) if 4 * channels * squeezed >= _SLICE * count), 1)
    many = images * cluster > 2 * sms
    return {"cluster": cluster, "images_per_cluster": 8 if many else 1}


def excites_in_two(tile: Tile, channels: int, squeezed: int) -> bool:
    """Whether so large matrices want many blocks, which without a cluster takes two launches of `excite`."""
    return tile["cluster"] == 1 and _want_two_launches(channels, squeezed)


def _want_two_launches(channels: int, squeezed: int) -> bool:
    return 4 * channels * squeezed >= _LAUNCH


def squeeze_excite(images: int, channels: int, squeezed: int, sms: int = 132, capability: int = 90) -> Tile:
    """For a whole image in a cluster, which is as large as all GPUs that have clusters allow."""
    cut = excite(images, channels, squeezed, sms, capability)
    return cut if capability < _CLUSTERS else {**cut, "cluster": 8}


HEURISTICS: Mapping[str, Callable[..., Tile]] = {
    "depthwise_conv": depthwise_conv,
    "excite": excite,
    "inverted_residual": inverted_residual,
    "pointwise_conv": pointwise_conv,
    "squeeze_excite": squeeze_excite,
}


def options(op: str, sizes: Mapping[str, Any]) -> list[Tile]:
    """The tiles of `op` that are compiled, for the arguments of its heuristic, on a GPU whose shared memory has room
    for all; an empty one stands for other kernels.
    """
    if op == "pointwise_conv":
        return [{"tile_rows": rows, "tile_outputs": outputs} for rows, outputs in _POINTWISE_TILES]
    if op == "excite":
        return [{"cluster": size, "images_per_cluster": images} for size in (1, 2, 4, 8) for images in (1, 8)]
    if op != "inverted_residual":
        return []
    names = ("channels", "inputs", "outputs", "kernel", "stride", "activation", "expands")
    cases = _cases(**{name: sizes[name] for name in names}, shared_bytes=1024 * max(SHARED.values()))
    found = [candidate.tile(splits) for candidate, splits in cases]
    return [*found, {}] if sizes["others"] else found


def _splits(steps: int, outputs: int) -> Iterator[int]:
    """Numbers of blocks among which a tile's steps may be shared, alike."""
    yield 1
    for splits in range(2, steps + 1 if not outputs else 0):
        if steps % splits == 0 or ceil(steps / splits) < ceil(steps / (splits - 1)):
            yield splits


def _shared(table: dict[int, int], capability: int) -> int:
    """Of the newest chip in the table that is not newer."""
    return table[max((known for known in table if known <= capability), default=75)]


def _pitch(columns: int) -> int:
    return (ceil(columns / 8) | 1) * 8


def _round_up(value: int, multiple: int) -> int:
    return ceil(value / multiple) * multiple
