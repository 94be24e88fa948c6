"""The network cut up over a cluster of blocks, for csrc/network.cu: its stages, their memory, weights in order."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mbv3fast.cluster.chunks import Chunks
from mbv3fast.cluster.ends import add_ends, add_stem
from mbv3fast.cluster.latency import predicted_seconds
from mbv3fast.cluster.memory import SHARED_BYTES, Cut, Memory
from mbv3fast.cluster.parts import Parts, UncutError, read_parts, stage_names
from mbv3fast.cluster.residual import add_block
from mbv3fast.cluster.search import fastest
from mbv3fast.cluster.table import Chunk, Stage
from mbv3fast.plan import Plan

__all__ = ["CLUSTERS", "ClusterPlan", "Cut", "UncutError", "as_bytes", "cut", "cut_as", "stage_names"]

CLUSTERS = (16, 8)  # blocks of a cluster, the best first; more than 8 not every chip has


@dataclass(frozen=True)
class ClusterPlan:
    """What a launch of the kernel needs, for images of one size.

    weights: uint8, the chunks one behind another. taken: bytes of shared memory that each stage takes, ring and table
    included; stages behind the blocks have one figure.
    """

    cut: Cut
    stages: tuple[Stage, ...]
    chunks: tuple[Chunk, ...]
    weights: Tensor
    taken: tuple[int, ...]
    shared_bytes: int = SHARED_BYTES

    @property
    def outputs(self) -> int:
        """Numbers of an image."""
        return int(self.stages[-1].outputs)


def cut(plan: Plan, size: tuple[int, int], blocks: int = CLUSTERS[0]) -> ClusterPlan:
    """A plan of CUDA's blocks cut for images of height and width `size` over a cluster of so many blocks, as `latency`
    predicts to take the least time.

    Raises UncutError for what the kernel doesn't compute, and where activations don't fit shared memory.
    """
    parts = read_parts(plan)
    reasons: list[str] = []

    @functools.cache
    def seconds(how: Cut) -> float:
        try:
            draft = _draft(parts, size, how)
        except UncutError as uncut:
            reasons.append(str(uncut))
            return math.inf
        return predicted_seconds(draft.stages, draft.chunks.table, blocks)

    best = fastest(len(parts.blocks), blocks, seconds)
    if seconds(best) == math.inf:
        raise UncutError(f"images of {size[0]}x{size[1]} don't fit a cluster of {blocks}: {reasons[0]}")
    return cut_as(plan, size, best)


def cut_as(plan: Plan, size: tuple[int, int], how: Cut) -> ClusterPlan:
    """The same in the way that is asked for, which raises ValueError unless it is of as many blocks as the network."""
    parts = read_parts(plan)
    if len(how.sharing) != len(parts.blocks):
        raise ValueError(f"sharing: got {how.sharing}, needs one for each of {len(parts.blocks)} blocks")
    return _draft(parts, size, how).finished(plan.dtype)


class _Draft(NamedTuple):
    """A cut whose weights are still to be made."""

    cut: Cut
    stages: list[Stage]
    chunks: Chunks
    taken: list[int]

    def finished(self, dtype: torch.dtype) -> ClusterPlan:
        weights = self.chunks.weights(dtype)
        return ClusterPlan(self.cut, tuple(self.stages), tuple(self.chunks.table), weights, tuple(self.taken))


def _draft(parts: Parts, size: tuple[int, int], how: Cut) -> _Draft:
    memory, chunks = Memory(parts, size, how), Chunks()
    stages = [add_stem(parts.stem, size, memory, chunks)]
    taken = [memory.taken]
    for index, block in enumerate(parts.blocks):
        stages.append(add_block(block, index, memory, chunks))
        taken.append(memory.taken)
    stages += add_ends(parts, memory, chunks)
    taken += [memory.taken] * (len(stages) - len(taken))
    if chunks.largest > how.slot:
        raise UncutError(f"a chunk of weights has {chunks.largest} bytes, a slot {how.slot}")
    return _Draft(how, stages, chunks, taken)


def as_bytes(structs: Sequence[ctypes.Structure]) -> Tensor:
    """A table as the kernel reads it."""
    return torch.frombuffer(bytearray(b"".join(map(bytes, structs))), dtype=torch.uint8)
