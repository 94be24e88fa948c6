"""What a cluster's blocks do in each stage, counted, and how long that may take: a model on paper, nothing measured.

A block's time in a stage is that of its tensor and CUDA cores, or of its weights on their way from the L2 cache where
these take longer, and, since nothing hides them, that of what goes to other blocks and of the barriers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mbv3fast.cluster.block import STRIP
from mbv3fast.cluster.table import CHANNELS, LINEAR, MEAN, ROWS, STEM, Chunk, Map, Stage

CLOCK = 1.755e9  # of an H100 under load, a second
# Assumed, each to be replaced by what a timeline shows: in clocks, or bytes and operations a clock of a multiprocessor.
_FROM_L2 = 40  # bytes; 64 is what its port could
_TO_PEERS = 11  # bytes; Luo et al. 2024 (arXiv 2402.13499) saw 2.65 TB/s of a whole chip in clusters of 4
_PRODUCT = 4  # of m16n8k16, whose factors are read from shared memory at 128 bytes a clock
_SUMS = 64  # multiply-adds; 128 is the rating, and numbers are converted and read besides
_CLUSTER_BARRIER, _BLOCK_BARRIER = 400, 40
LAUNCH = (3000 + _CLUSTER_BARRIER) / CLOCK  # seconds until all blocks of a cluster run


class Work(NamedTuple):
    """Of a block in a stage: products of tensor cores (m16n8k16), multiply-adds of CUDA cores, bytes of weights, bytes
    for other blocks, barriers of the cluster and of the block.
    """

    products: int = 0
    sums: int = 0
    weights: int = 0
    remote: int = 0
    cluster_barriers: int = 0
    barriers: int = 0

    def plus(self, other: Work) -> Work:
        return Work(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    @property
    def seconds(self) -> float:
        cores = self.products * _PRODUCT + self.sums / _SUMS
        waits = self.remote / _TO_PEERS + self.cluster_barriers * _CLUSTER_BARRIER + self.barriers * _BLOCK_BARRIER
        return (max(cores, self.weights / _FROM_L2) + waits) / CLOCK


@dataclass(frozen=True)
class StageWork:
    """A stage, and the work of each block."""

    name: str
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
    for number, stage in enumerate(stages):
        count = chunk_count(stage)
        rest = Work(weights=sum(next(left).bytes for _ in range(count)), barriers=2 * count)
        last = number == len(stages) - 1
        work = tuple(_WORK[stage.kind](stage, rank, blocks, last).plus(rest) for rank in range(blocks))
        found.append(StageWork(_NAMES[stage.kind], stage, work))
    return found


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
    if stage.kind == CHANNELS:
        return steps + layers + projections + 1
    return (1 if stage.bound else steps) + layers + (projections if squeeze.squeezed or not stage.bound else 0)


def _share(rank: int, own: int, height: int) -> tuple[int, int]:
    begin = min(rank * own, height)
    return begin, min(begin + own, height)


def _products(rows: int, columns: int, depth: int) -> int:
    """Of a matrix product in tiles of 16 by 16; the last 8 of the depth are a product of half the size."""
    return -(-rows // 16) * -(-columns // 16) * 2 * -(-depth // 16)


def _stem(stage: Stage, rank: int, blocks: int, last: bool) -> Work:  # noqa: ARG001
    out = stage.output
    begin, end = _share(rank, stage.rows, out.height)
    if end > begin:
        begin, end = max(begin - out.above, 0), min(rank * stage.rows + stage.rows + out.below, out.height)
    tiles = (end - begin) * -(-out.width // 16) * -(-out.channels // 16)
    return Work(products=6 * tiles)


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
    products = sums = barriers = 0
    for pixels, rows in _bands(stage, begin, end):
        if stage.expands:
            products += steps * _products(pixels, stage.step, stage.input.channels)
        sums += rows * strips * STRIP * stage.channels * stage.kernel**2
        barriers += 2 * steps
    return Work(products=products, sums=sums, barriers=barriers)


def _projected(stage: Stage, pixels: int) -> int:
    outputs = range(0, stage.output.channels, stage.projected)
    counts = (min(stage.projected, stage.output.channels - first) for first in outputs)
    return sum(_products(pixels, count, stage.channels) for count in counts)


def _rows(stage: Stage, rank: int, blocks: int, last: bool) -> Work:  # noqa: ARG001
    begin, end = _share(rank, stage.rows, stage.output.height)
    work = _windows(stage, begin, end)
    whole = not stage.bound or stage.squeeze.squeezed  # projected at once, else band by band
    parts = [end - begin] if whole else [rows for _, rows in _bands(stage, begin, end)]
    products = sum(_projected(stage, rows * stage.output.width) for rows in parts)
    remote = sum(_wanted(stage.output, begin, end, other) for other in range(blocks) if other != rank)
    work = work.plus(Work(products=products, remote=remote, cluster_barriers=1))
    return work.plus(_excite_rows(stage, rank, blocks)) if stage.squeeze.squeezed else work


def _wanted(place: Map, begin: int, end: int, rank: int) -> int:
    """Bytes of rows `begin` to `end` that another block wants."""
    if place.rows:
        if rank * place.rows >= place.height:
            return 0
        begin = max(begin, rank * place.rows - place.above)
        end = min(end, (rank + 1) * place.rows + place.below)
    return max(end - begin, 0) * place.width * place.channels * 2


def _excite_rows(stage: Stage, rank: int, blocks: int) -> Work:
    squeeze, others = stage.squeeze, 4 * (blocks - 1)
    sums = 2 * squeeze.squeezed * squeeze.slice
    if not squeeze.shared:
        return Work(sums=sums, remote=stage.channels * others, cluster_barriers=1)
    begin, end = _share(rank, squeeze.slice, stage.channels)
    remote = 4 * (stage.channels - (end - begin)) + (squeeze.squeezed + end - begin) * others
    return Work(sums=sums, remote=remote, cluster_barriers=3)


def _channels(stage: Stage, rank: int, blocks: int, last: bool) -> Work:  # noqa: ARG001
    pixels, outputs = stage.output.height * stage.output.width, stage.output.channels
    begin, end = _share(rank, stage.pixels, pixels)
    remote = (pixels - (end - begin)) * outputs * 4 + (end - begin) * outputs * 2 * (blocks - 1)
    work = _windows(stage, 0, stage.output.height)
    work = work.plus(Work(products=_projected(stage, pixels), remote=remote, cluster_barriers=2))
    if not stage.squeeze.squeezed:
        return work
    squeezed = stage.squeeze.squeezed
    excite = Work(sums=2 * squeezed * stage.channels, remote=squeezed * 4 * (blocks - 1), cluster_barriers=1)
    return work.plus(excite)


def _mean(stage: Stage, rank: int, blocks: int, last: bool) -> Work:  # noqa: ARG001
    steps, pixels = stage.channels // stage.step, stage.input.height * stage.input.width
    begin, end = _share(rank, stage.channels, stage.outputs)
    products = steps * _products(pixels, stage.step, stage.input.channels)
    return Work(products=products, remote=(end - begin) * 4 * (blocks - 1), cluster_barriers=1)


def _linear(stage: Stage, rank: int, blocks: int, last: bool) -> Work:
    begin, end = _share(rank, stage.channels, stage.outputs)
    remote = 0 if last else (end - begin) * 4 * (blocks - 1)
    return Work(sums=stage.step * stage.chunks * stage.inputs, remote=remote, cluster_barriers=1)


_WORK = {STEM: _stem, ROWS: _rows, CHANNELS: _channels, MEAN: _mean, LINEAR: _linear}
_NAMES = {STEM: "stem", ROWS: "rows", CHANNELS: "channels", MEAN: "mean", LINEAR: "linear"}
