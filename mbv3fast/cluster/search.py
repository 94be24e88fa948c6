"""Which of all cuts to take: there are thousands, so one is made better step by step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

from mbv3fast.cluster.memory import Cut

_SLOTS = (32 * 1024, 28 * 1024, 24 * 1024, 20 * 1024, 16 * 1024)
_SIZES = (1, 2, 4, 8, 16)  # of groups


def fastest(count: int, blocks: int, seconds: Callable[[Cut], float]) -> Cut:
    """Of a network of `count` blocks: the fastest that goes from groups of one block to one of all at once, or where
    none fits by groups of one size between, then of its neighbours. `seconds` is infinite for what doesn't fit.
    """
    sizes = [size for size in _SIZES if size < blocks]
    ends = [(in_rows,) * len(sizes) for in_rows in range(count, 0, -1)]
    best = min((_cut(blocks, slot, count, end) for slot in _SLOTS for end in ends), key=seconds)
    if seconds(best) == math.inf:
        pairs = itertools.combinations(range(1, count + 1), 2)
        ends = [(a,) * few + (b,) * (len(sizes) - few) for a, b in pairs for few in range(1, len(sizes))]
        best = min((_cut(blocks, _SLOTS[-1], count, end) for end in ends), key=seconds, default=best)
    while True:
        better = min(_neighbours(best, count, sizes), key=seconds)
        if seconds(better) >= seconds(best):
            return best
        best = better


def _cut(blocks: int, slot: int, count: int, ends: tuple[int, ...]) -> Cut:
    """Groups of each size end where `ends` says, the smallest first; behind them all blocks share channels."""
    sizes = [size for size in _SIZES if size < blocks]
    of = (next((size for size, end in zip(sizes, ends, strict=True) if index < end), blocks) for index in range(count))
    return Cut(blocks, slot, tuple(of))


def _neighbours(cut: Cut, count: int, sizes: list[int]) -> Iterator[Cut]:
    """Other slots, and some ends a block earlier or later."""
    ends = [sum(of <= size for of in cut.sharing) for size in sizes]
    for slot in _SLOTS:
        yield _cut(cut.blocks, slot, count, tuple(ends))
    for (first, last), by in itertools.product(itertools.combinations(range(len(ends) + 1), 2), (-1, 1)):
        moved = [end + by if first <= number < last else end for number, end in enumerate(ends)]
        if moved[0] >= 1 and moved[-1] <= count and moved == sorted(moved):
            yield _cut(cut.blocks, cut.slot, count, tuple(moved))
