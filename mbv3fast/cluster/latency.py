"""What a cluster's blocks do in each stage, counted, and how long that may take: a model on paper, nothing measured.

A block's time in a stage is that of its tensor and CUDA cores, or of its weights on their way from the L2 cache where
these take longer, and, since nothing hides them, that of what goes to other blocks and of the barriers.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from mbv3fast.cluster.table import BLOCK, LINEAR, MEAN, STEM, Chunk, Map, Stage
from mbv3fast.cluster.tiling import WARPS, clocks_of, tiles_of
from mbv3fast.cluster.windows import STRIP

CLOCK = 1.755e9  # of an H100 under load, a second
# Assumed, each to be replaced by what a timeline shows: in clocks, or bytes and operations a clock of a multiprocessor.
_FROM_L2 = 40  # bytes; 64 is what its port could
_TO_PEERS = 11  # bytes; Luo et al. 2024 (arXiv 2402.13499) saw 2.65 TB/s of a whole chip in clusters of 4
_SUMS = 64  # multiply-adds; 128 is the rating, and numbers are converted and read besides
_FINISHED = 24  # sums that are activated, rounded and stored; the image's numbers
_CLUSTER_BARRIER, _BLOCK_BARRIER = 400, 40
LAUNCH = 3000 / CLOCK  # seconds until all blocks of a cluster run


class Work(NamedTuple):
    """Of a block in a stage: products of tensor cores (m16n8k16) and the clocks that reading their factors takes;
    numbers that are finished; multiply-adds of CUDA cores; bytes of weights, bytes for other blocks; barriers of the
    cluster and of the block.
    """

    products: int = 0
    reading: int = 0
    finished: int = 0
    sums: int = 0
    weights: int = 0
    remote: int = 0
    cluster_barriers: int = 0
    barriers: int = 0

    def plus(self, other: Work) -> Work:
        return Work(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def seconds(self) -> float:
        cores = self.reading + self.finished / _FINISHED + self.sums / _SUMS
        waits = self.remote / _TO_PEERS + self.cluster_barriers * _CLUSTER_BARRIER + self.barriers * _BLOCK_BARRIER
        return (max(cores, self.weights / _FROM_L2) + waits) / CLOCK


@dataclass(frozen=True)
class StageWork:
    """A stage, and the work of each block."""

    stage: Stage
    blocks: tuple[Work, ...]

    @property
    def busiest(self) -> Work:
        return max(self.blocks, key=lambda work: work.seconds)


def predicted_seconds(stages: Sequence[Stage], chunks: Sequence[Chunk], blocks: int) -> float:
    """Of an image, from pixels to logits: every stage waits for its busiest block."""
    return sum(stage.busiest.seconds for stage in work_of(stages, chunks, blocks))


def work_of(stages: Sequence[Stage], chunks: Sequence[Chunk], blocks: int) -> list[StageWork]:
    """Each stage's, of an image on a cluster of so many blocks."""
    left = iter(chunks)
    found = []
    for stage in stages:
        count = chunk_count(stage)
        rest = Work(weights=sum(next(left).bytes for _ in range(count)), barriers=count)
        work = tuple(own.plus(rest) for own in _works(bytes(stage), blocks))
        found.append(StageWork(stage, work))
    last = found[-1]
    found[-1] = replace(last, blocks=tuple(work._replace(remote=0) for work in last.blocks))  # it goes to memory
    return found


def typical_seconds(stage: Stage, blocks: int) -> float:
    """Of the block whose rank is in the middle; weights aren't counted, of which all ways need as many."""
    work = _WORK[stage.kind](stage, blocks // 2, blocks)
    return work.plus(Work(barriers=chunk_count(stage))).seconds


@functools.lru_cache(1 << 14)  # the stages of one cut are those of many others
def _works(stage: bytes, blocks: int) -> tuple[Work, ...]:
    """Of each block, but for its weights."""
    own = Stage.from_buffer_copy(stage)
    return tuple(_WORK[own.kind](own, rank, blocks) for rank in range(blocks))


def chunk_count(stage: Stage) -> int:
    """Chunks of weights that a stage uses."""
    if stage.kind == STEM:
        return 1
    if stage.kind == LINEAR:
        return int(stage.chunks)
    steps = -(-stage.channels // stage.step)
    if stage.kind == MEAN:
        return steps
    projections = -(-stage.output.channels // stage.projected)
    squeeze = stage.squeeze
    layers = -(-squeeze.squeezed // squeeze.units) + -(-squeeze.slice // squeeze.rows) if squeeze.squeezed else 0
    projected = 0 if stage.bound and not squeeze.squeezed else projections
    return (1 if stage.bound else steps) + layers + projected + (stage.sharing > 1)


def _share(rank: int, own: int, height: int) -> tuple[int, int]:
    begin = min(rank * own, height)
    return begin, min(begin + own, height)


def _products(rows: int, columns: int, depth: int, tiling: int) -> Work:
    """Of a matrix product; the last 8 of the depth are a product of half the size."""
    steps, tiles = -(-depth // 16), tiles_of(rows, columns, tiling)
    return Work(2 * steps * tiles, steps * clocks_of(rows, columns, tiling), 256 * tiles)


def _total(works: Iterable[Work]) -> Work:
    return functools.reduce(Work.plus, works, Work())


def _stem(stage: Stage, rank: int, blocks: int) -> Work:  # noqa: ARG001
    out = stage.output
    begin, end = _share(rank, stage.rows, out.height)
    if end > begin:
        begin, end = max(begin - out.above, 0), min(rank * stage.rows + stage.rows + out.below, out.height)
    tiles = (end - begin) * -(-out.width // 16) * -(-out.channels // 16)
    pixels = ((end - begin - 1) * stage.stride + stage.kernel) * stage.expanded_width if end > begin else 0
    return Work(
        products=6 * tiles,
        reading=3 * 8 * WARPS * -(-tiles // WARPS),
        finished=256 * tiles + 3 * pixels,
        cluster_barriers=1,
    )


def _bands(stage: Stage, begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Pixels of the input and rows of the output of each band."""
    for row in range(begin, end, stage.band):
        below = min(row + stage.band, end)
        top = row * stage.stride - stage.top
        bottom = top + (below - row - 1) * stage.stride + stage.kernel
        yield (min(bottom, stage.input.height) - max(top, 0)) * stage.input.width, below - row


def _windows(stage: Stage, begin: int, end: int) -> Work:
    """Expand and depthwise of rows of the output, of all steps."""
    steps, strips = stage.channels // stage.step, -(-stage.output.width // STRIP)
    work = Work()
    for pixels, rows in list(_bands(stage, begin, end)) or [(0, 0)]:
        sums = rows * strips * STRIP * stage.channels * stage.kernel**2
        work = work.plus(Work(sums=sums, barriers=2 * steps if stage.bound else steps))
        if stage.expands:
            step = _products(pixels, stage.step, stage.input.channels, stage.expand_tiles)
            work = work.plus(_total([step] * steps))
    return work


def _projected(stage: Stage, pixels: int) -> Work:
    outputs = range(0, stage.output.channels, stage.projected)
    counts = (min(stage.projected, stage.output.channels - first) for first in outputs)
    return _total(_products(pixels, count, stage.channels, stage.project_tiles) for count in counts)


def _residual(stage: Stage, rank: int, blocks: int) -> Work:
    begin, end = _share(rank // stage.sharing, stage.rows, stage.output.height)
    whole = not stage.bound or stage.squeeze.squeezed  # projected at once, else band by band
    parts = [end - begin] if whole else [rows for _, rows in _bands(stage, begin, end)]
    work = _windows(stage, begin, end).plus(_excite(stage, rank, blocks))
    work = work.plus(_total(_projected(stage, rows * stage.output.width) for rows in parts))
    given = _published if stage.sharing == 1 else _added_up
    return work.plus(given(stage, rank, begin, end, blocks))


def _published(stage: Stage, rank: int, begin: int, end: int, blocks: int) -> Work:
    pixels = _handed(stage.output, rank, begin, end, blocks) * stage.output.width
    return Work(remote=pixels * stage.output.channels * 2, cluster_barriers=1, barriers=1)


def _added_up(stage: Stage, rank: int, begin: int, end: int, blocks: int) -> Work:
    """Parts of sums to those whose pixels they are, and what becomes of its own to those who want them."""
    out, pixels = stage.output, (end - begin) * stage.output.width
    first, last = _share(rank % stage.sharing, stage.pixels, pixels)
    remote = (pixels - (last - first)) * out.channels * 4
    for y in range(begin + first // out.width, begin - (-last // out.width)):
        own = min(last, (y + 1 - begin) * out.width) - max(first, (y - begin) * out.width)  # its pixels of the row
        remote += own * _handed(out, rank, y, y + 1, blocks) * out.channels * 2
    return Work(remote=remote, cluster_barriers=2)


def _handed(place: Map, rank: int, begin: int, end: int, blocks: int) -> int:
    """Rows `begin` to `end` as often as other blocks are to have them."""
    if not place.rows:
        return (end - begin) * (blocks - 1)
    owned = ((other >> place.group_bits) * place.rows for other in range(blocks) if other != rank)
    held = ((own - place.above, own + place.rows + place.below) for own in owned if own < place.height)
    return sum(max(min(end, last) - max(begin, first), 0) for first, last in held)


def _excite(stage: Stage, rank: int, blocks: int) -> Work:
    squeeze, groups, others = stage.squeeze, blocks // stage.sharing, blocks - 1
    if not squeeze.squeezed:
        return Work()
    sums = 2 * squeeze.squeezed * squeeze.slice
    if squeeze.alone:
        return Work(sums=sums, remote=4 * stage.channels * others, cluster_barriers=int(groups > 1), barriers=2)
    told = Work(sums=sums, remote=4 * squeeze.squeezed * others, cluster_barriers=1, barriers=1)
    if groups == 1:
        return told.plus(Work(barriers=1))
    first = rank % stage.sharing * stage.channels
    begin, end = _share(rank, squeeze.slice, stage.sharing * stage.channels)
    kept = max(min(end, first + stage.channels) - max(begin, first), 0)  # of the channels whose sums and scales it has
    remote = 4 * (stage.channels - kept) + 4 * ((end - begin) * groups - kept)
    return told.plus(Work(remote=remote, cluster_barriers=2))


def _mean(stage: Stage, rank: int, blocks: int) -> Work:
    steps, pixels = stage.channels // stage.step, stage.input.height * stage.input.width
    begin, end = _share(rank, stage.channels, stage.outputs)
    products = _total([_products(pixels, stage.step, stage.input.channels, stage.expand_tiles)] * steps)
    return products.plus(Work(remote=(end - begin) * 4 * (blocks - 1), cluster_barriers=1, barriers=steps))


def _linear(stage: Stage, rank: int, blocks: int) -> Work:
    begin, end = _share(rank, stage.channels, stage.outputs)
    sums = stage.step * stage.chunks * stage.inputs
    return Work(sums=sums, remote=(end - begin) * 4 * (blocks - 1), cluster_barriers=1)


_WORK = {STEM: _stem, BLOCK: _residual, MEAN: _mean, LINEAR: _linear}
