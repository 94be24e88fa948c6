"""Runs a whole network as one launch, by tables made for each size of images when it first comes."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import Tensor

from mbv3fast.cluster import CLUSTERS, ClusterPlan, UncutError, as_bytes, cut
from mbv3fast.cluster.memory import SHARED_BYTES
from mbv3fast.cluster.parts import read_parts
from mbv3fast.cuda.network import most_clusters, network
from mbv3fast.plan import Plan

logger = logging.getLogger("mbv3fast")
Size = tuple[int, int]  # height and width of an image


class _Tables(NamedTuple):
    """A cut on its device, and how many clusters run there at once."""

    plan: ClusterPlan
    weights: Tensor
    stages: Tensor
    chunks: Tensor
    clusters: int


class ClusterNetwork:
    """A plan of backend "network" on clusters of blocks; safe to call from several threads."""

    def __init__(self, plan: Plan) -> None:
        """Raises UncutError for a network that the kernel doesn't compute."""
        read_parts(plan)
        self._plan = plan
        self._tables: dict[tuple[torch.device, Size], _Tables | str] = {}  # all are kept: graphs read their weights

    def lack(self, size: Size, device: torch.device) -> str:
        """Why images of this size can't be served there; empty where they can."""
        found = self._found(size, device)
        return found if isinstance(found, str) else ""

    def tables(self, x: Tensor) -> ClusterPlan:
        """How images of x's size are cut on its device. Raises UncutError for a size that lacks."""
        return self._needed(x).plan

    def timeline(self, x: Tensor) -> Tensor:
        """When each block began the stages of its last image of `x`, and had ended: [blocks, stages + 1] int64, by the
        clocks of multiprocessors, which differ.
        """
        tables = self._needed(x)
        stamps = torch.zeros(
            (self._clusters(x, tables) * tables.plan.cut.blocks, len(tables.plan.stages) + 1),
            dtype=torch.int64,
            device=x.device,
        )
        self._launch(x, tables, stamps=stamps)
        return stamps

    def __call__(self, x: Tensor, factor: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        """Logits [N, M] of x [N, C, H, W], of the plan's dtype or bytes. Raises UncutError for a size that lacks."""
        return self._launch(x, self._needed(x), factor=factor, shift=shift)

    def _needed(self, x: Tensor) -> _Tables:
        tables = self._found((x.shape[2], x.shape[3]), x.device)
        if isinstance(tables, str):
            raise UncutError(tables)
        return tables

    def _clusters(self, x: Tensor, tables: _Tables) -> int:
        return max(1, min(x.shape[0], tables.clusters))

    def _launch(self, x: Tensor, tables: _Tables, **others: Tensor | None) -> Tensor:
        out = torch.empty((x.shape[0], tables.plan.outputs), dtype=self._plan.dtype, device=x.device)
        network(
            x if x.dtype == torch.uint8 else x.to(self._plan.dtype),
            tables.weights,
            tables.stages,
            tables.chunks,
            out=out,
            **others,
            stage_count=len(tables.plan.stages),
            chunk_count=len(tables.plan.chunks),
            cluster=tables.plan.cut.blocks,
            clusters=self._clusters(x, tables),
            slot=tables.plan.cut.slot,
            shared_bytes=tables.plan.shared_bytes,
            pdl=True,
        )
        return out

    def _found(self, size: Size, device: torch.device) -> _Tables | str:
        key = device, size
        if key not in self._tables:  # where two threads make it, both use the first one's
            self._tables.setdefault(key, self._made(size, device))
        return self._tables[key]

    def _made(self, size: Size, device: torch.device) -> _Tables | str:
        """For the largest clusters that the device has and the images fit; or why there are none."""
        logger.info("cutting the network for images of %dx%d, which takes seconds", *size)
        reasons = []
        for blocks in CLUSTERS:
            clusters = most_clusters(blocks, SHARED_BYTES, self._plan.dtype, device)
            if not clusters:
                continue
            try:
                found = cut(self._plan, size, blocks)
            except UncutError as uncut:
                reasons.append(str(uncut))
                continue
            stages, chunks = (as_bytes(table).to(device) for table in (found.stages, found.chunks))
            weights = found.weights.to(device)
            if device.type == "cuda":  # the kernel reads them before it waits for what else its stream does
                torch.cuda.current_stream(device).synchronize()
            return _Tables(found, weights, stages, chunks, clusters)
        return reasons[0] if reasons else "the device has no clusters of blocks"
