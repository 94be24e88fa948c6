"""How CUDA launches are cut into blocks: pure functions of an op's shape, the number of images and the GPU.

Few images starve a chip: many small tiles, each of few steps. Many fill it: large tiles, whose windows overlap little.
The times that choices go by are guesses at a multiprocessor's cycles, good to tell one tile from another, no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import ceil
from typing import Any

from mbv3fast.cuda.compiled import PRODUCTS, SHARED, TILES, CompiledTile, shared_limit
from mbv3fast.cuda.launch import Tile

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
    cases = _cases(channels, inputs, outputs, kernel, stride, activation, expands, shared_limit(capability))

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
        busy = inputs * (height * width / PRODUCTS + (height + width) / 32)  # products, and what must be read for them
        return ceil(blocks / sms) * busy + ceil(blocks / (4 * sms)) * waits

    height, width = min(_POINTWISE_TILES, key=cycles)
    return {"tile_rows": height, "tile_outputs": width}


_MOST_CHANNELS, _MOST_SQUEEZED = 2048, 512  # of squeeze-excite, and of a scale: twice the widest network's
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


def excites(channels: int, squeezed: int = 1) -> bool:
    """Whether shared memory has room for the vectors of such a squeeze-excite, on every GPU from Ampere on."""
    return channels <= _MOST_CHANNELS and squeezed <= _MOST_SQUEEZED


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
