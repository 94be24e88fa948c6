"""The best of all ways to go through a stage that fit shared memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mbv3fast.cluster.block import tile_width
from mbv3fast.cluster.chunks import pitch_of
from mbv3fast.cluster.excite import set_squeeze
from mbv3fast.cluster.latency import typical_seconds
from mbv3fast.cluster.memory import Memory
from mbv3fast.cluster.parts import Block, UncutError
from mbv3fast.cluster.table import Stage
from mbv3fast.cluster.tiling import set_tilings

Lengths = Callable[[Stage, Block, int], list[int]]


def best_placed(ways: Iterable[Stage], block: Block, memory: Memory, lengths: Lengths) -> Stage:
    """The stage that is predicted to be fastest, of those whose buffers, `lengths` long, fit. Raises UncutError."""
    found: list[tuple[float, int, Stage]] = []
    reason = "has chunks of weights that are larger than a slot"
    for stage in ways:
        try:
            _place(stage, block, memory, lengths)
        except UncutError as uncut:
            reason = str(uncut)
            continue
        found.append((typical_seconds(stage, memory.cut.blocks), memory.taken, stage))
    if not found:
        raise UncutError(f"{block.name}: {reason}")
    _, memory.taken, stage = min(found, key=lambda one: one[:2])
    return stage


def _place(stage: Stage, block: Block, memory: Memory, lengths: Lengths) -> None:
    places = memory.place(lengths(stage, block, memory.cut.blocks), stage.input, stage.output)
    stage.expanded, stage.windowed, stage.sums, *vectors = places
    stage.expanded_pitch, stage.expanded_width = pitch_of(stage.step), tile_width(stage)
    stage.windowed_pitch = pitch_of(stage.channels)
    set_squeeze(stage, block, memory.cut, vectors)
    set_tilings(stage)
