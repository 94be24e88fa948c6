"""Where things lie in a block's shared memory, and which rows of a feature map a block has."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from mbv3fast.cluster.chunks import aligned, in_eights, pitch_of
from mbv3fast.cluster.parts import Parts, UncutError, sizes
from mbv3fast.cluster.table import Map, Stage
from mbv3fast.cuda.compiled import shared_limit

SHARED_BYTES = shared_limit(90)  # of a block, on Hopper
SLOTS = 3  # of chunks on their way, as csrc/network_stream.cuh has them


@dataclass(frozen=True)
class Cut:
    """How `blocks` of a cluster share the network's blocks, and bytes of a slot for weights.

    sharing: of each of the network's blocks, the size of the groups into which the cluster is cut. A group has rows of
    the image, and its members share the channels: 1 is rows alone, all blocks channels alone. They are powers of 2, and
    never become smaller.
    """

    blocks: int
    slot: int
    sharing: tuple[int, ...]

    def __post_init__(self) -> None:
        sizes = (1, *self.sharing, self.blocks)
        if self.slot <= 0 or self.slot % 16:
            raise ValueError(f"slot: got {self.slot}, needs a multiple of 16")
        if self.blocks > 16:
            raise ValueError(f"blocks: got {self.blocks}, needs up to 16")
        if self.blocks > 1 and self.sharing[:1] != (1,):
            raise ValueError(f"sharing: got {self.sharing}, needs 1 first, as the stem's rows are of single blocks")
        if any(size.bit_count() != 1 for size in sizes) or sizes != tuple(sorted(sizes)):
            raise ValueError(
                f"sharing: got {self.sharing} of {self.blocks} blocks, needs powers of 2, none below another"
            )


class Memory:
    """The ring of weights first, the table of stages last; feature maps at both ends of the rest in turn, and between
    them what a stage needs.

    Map 0 is the stem's output, map i + 1 that of block i. Maps that blocks of a cluster write into each other's memory
    are never where what they still read may lie: those of a stage and of the next one are apart.
    """

    def __init__(self, parts: Parts, size: tuple[int, int], cut: Cut) -> None:
        self.cut = cut
        self.shapes = sizes(parts, size)
        self._parts = parts
        stages = len(parts.blocks) + len(parts.linears) + 3  # the ends are a stem, a mean, and a layer more
        self._begin, self._end = SLOTS * cut.slot, SHARED_BYTES - stages * ctypes.sizeof(Stage)
        self._computed, self._held = self._rows_of_maps()
        self.taken = 0  # bytes of the stage that was placed last, the ring's included
        self.maps = [self._map(index) for index in range(len(self.shapes))]

    def _rows_of_maps(self) -> tuple[list[int], list[int]]:
        """Of each map a group's rows, computed by the groups of one stage and held by those of the next.

        They are what strides make of an equal share of the first map that every block has the whole of, or a little
        more, so that groups that become larger divide them. Of 14 rows by groups of 1, then 4 of 16 blocks: each of
        four groups holds 4 rows, of which each block has computed 1.
        """
        sharing, strides = (1, *self.cut.sharing), [block.stride for block in self._parts.blocks]
        heights = [shape.height for shape in self.shapes]
        whole = sum(size < self.cut.blocks for size in self.cut.sharing)
        for own in itertools.count(-(-heights[whole] * sharing[whole] // self.cut.blocks)):
            computed, held = [*heights], [*heights]
            computed[whole] = own
            for index in reversed(range(whole)):
                held[index] = computed[index + 1] * strides[index]
                computed[index], rest = divmod(held[index] * sharing[index], sharing[index + 1])
                if rest:
                    break
            else:
                return computed, held
        raise AssertionError("some share is divisible")

    def rows_of(self, index: int) -> int:
        """Of map `index`, those that a group computes."""
        return self._computed[index]

    def _map(self, index: int) -> Map:
        shape, before = self.shapes[index], index - 1
        channels = len(self._parts.stem["weight"]) if index == 0 else self._parts.blocks[before].outputs
        rows = above = below = 0
        sharing = ([*self.cut.sharing, self.cut.blocks])[index]
        if sharing < self.cut.blocks:  # cut into rows, with those that the next block's windows reach
            block = self._parts.blocks[index]
            top = block.shape((shape.height, shape.width)).padding[2]
            rows, above, below = self._held[index], top, max(block.kernel - block.stride - top, 0)
        pitch = channels if channels <= 16 else pitch_of(channels)  # two rows of 16 share banks, one more pays less
        place = Map(0, pitch, shape.height, shape.width, channels, rows, above, below, sharing.bit_length() - 1)
        place.at = self._begin if index % 2 == 0 else self._end - length(place)
        return place

    def place(self, lengths: Sequence[int], *maps: Map) -> list[int]:
        """Offsets of a stage's buffers between these maps, one behind another; `taken` is then what the stage takes.

        Raises UncutError where there is no room.
        """
        begin = max([self._begin, *(place.at + length(place) for place in maps if place.at == self._begin)])
        end = min([self._end, *(place.at for place in maps if place.at != self._begin)])
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
    """Bytes of a vector."""
    return 4 * in_eights(count)
