"""Where things lie in a block's shared memory, and which rows of a feature map a block has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mbv3fast.cluster.chunks import aligned, pitch_of
from mbv3fast.cluster.parts import Parts, UncutError, sizes
from mbv3fast.cluster.table import Map

SHARED_BYTES = 232_448  # that a block may have on Hopper, of 227 KB
SLOTS = 3  # of chunks on their way, as csrc/network_stream.cuh has them


@dataclass(frozen=True)
class Cut:
    """`blocks` of a cluster; the network's blocks that are cut into rows, the others into channels; bytes of a slot."""

    blocks: int
    in_rows: int
    slot: int


class Memory:
    """The ring of weights first; behind it feature maps at both ends in turn, and what a stage needs between them.

    Map 0 is the stem's output, map i + 1 that of block i. Maps that blocks of a cluster write into each other's memory
    are never where what they still read may lie: those of a stage and of the next one are apart.
    """

    def __init__(self, parts: Parts, size: tuple[int, int], cut: Cut) -> None:
        self.cut = cut
        self.shapes = sizes(parts, size)
        self._parts = parts
        self._begin = SLOTS * cut.slot
        self._rows = self._rows_of_maps()
        self.taken = 0  # bytes of the stage that was placed last, the ring's included
        self.maps = [self._map(index) for index in range(len(self.shapes))]

    def _rows_of_maps(self) -> list[int]:
        """A block's rows of each map up to the one that all get: what strides make of an equal share of the last."""
        count = self.cut.in_rows
        own = -(-self.shapes[count].height // self.cut.blocks)
        rows = [own]
        for block in reversed(self._parts.blocks[:count]):
            own *= block.stride
            rows.append(own)
        return rows[::-1]

    def rows_of(self, index: int) -> int:
        """Of map `index`, those that a block computes."""
        return self._rows[index]

    def _map(self, index: int) -> Map:
        shape, before = self.shapes[index], index - 1
        channels = len(self._parts.stem["weight"]) if index == 0 else self._parts.blocks[before].outputs
        rows = above = below = 0
        if index < self.cut.in_rows:  # cut into rows, with those that the next block's windows reach
            block = self._parts.blocks[index]
            top = block.shape((shape.height, shape.width)).padding[2]
            rows, above, below = self._rows[index], top, max(block.kernel - block.stride - top, 0)
        pitch = channels if channels <= 16 else pitch_of(channels)  # two rows of 16 share banks, one more pays less
        place = Map(0, pitch, shape.height, shape.width, channels, rows, above, below)
        place.at = self._begin if index % 2 == 0 else SHARED_BYTES - length(place)
        return place

    def place(self, lengths: Sequence[int], *maps: Map) -> list[int]:
        """Offsets of a stage's buffers between these maps, one behind another; `taken` is then what the stage takes.

        Raises UncutError where there is no room.
        """
        begin = max([self._begin, *(place.at + length(place) for place in maps if place.at == self._begin)])
        end = min([SHARED_BYTES, *(place.at for place in maps if place.at != self._begin)])
        places = []
        for size in lengths:
            places.append(begin)
            begin += aligned(size)
        if begin > end:
            raise UncutError(f"activations take {begin - end:,} bytes more than a block has")
        self.taken = begin + SHARED_BYTES - end
        return places


def length(place: Map) -> int:
    """Bytes of a map in a block."""
    held = place.rows + place.above + place.below if place.rows else place.height
    return aligned(held * place.width * place.pitch * 2)


def floats(count: int) -> int:
    """Bytes of a vector, read eight at a time."""
    return 4 * -(-count // 8) * 8
