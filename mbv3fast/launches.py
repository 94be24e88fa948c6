"""The launches of a whole plan, seen and not made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from mbv3fast.ops import OPS
from mbv3fast.ops.target import Target, UncoveredError
from mbv3fast.plan import Plan, Shape, Step
from mbv3fast.traffic import Traffic, dry_run, storages, traffic_of

if TYPE_CHECKING:
    from mbv3fast.launching import Launch


_Place = tuple[StorageWeakRef, int]  # a storage, and where in it


class PlannedLaunch(NamedTuple):
    """A launch of a plan, the step that makes it, and the bytes that it is passed beside its weights."""

    step: Step
    launch: Launch
    traffic: Traffic


class Moved(NamedTuple):
    """Bytes that a launch reads and writes of its tensors, weights among them, each once however often it is passed.

    fresh: of those read, what no launch before it in the step has touched.
    """

    read: int
    written: int
    fresh: int

    @property
    def all(self) -> int:
        return self.read + self.written


def planned_launches(plan: Plan, shape: Shape, target: Target | None = None) -> Iterator[PlannedLaunch]:
    """Every launch of a plan of our kernels for an input of `shape` [N, C, H, W], in order; configured for the H100
    unless a `target` says otherwise. Raises ValueError for the network in one launch.
    """
    if plan.in_one_launch:
        raise ValueError("plan: got 'network', one launch whose steps have none; needs another (see mbv3fast stages)")
    shapes = plan.shapes(shape)
    for step in plan.steps:
        inputs = step.input_shapes(shapes)
        run_for = target or plan.target
        try:
            launches, _ = dry_run(OPS[step.op], inputs, step.tensors, step.options, plan.dtype, run_for, step.inputs)
        except UncoveredError:
            continue  # PyTorch computes it
        weights = storages(step.tensors)
        for launch in launches:
            yield PlannedLaunch(step, launch, traffic_of([launch], weights))


def moved(launches: Sequence[Launch]) -> list[Moved]:
    """What each launch of a step moves, in their order."""
    touched: set[_Place] = set()
    found = []
    for launch in launches:
        read, written = _sizes(launch.reads.values()), _sizes(launch.writes.values())
        fresh = sum(size for place, size in read.items() if place not in touched)
        found.append(Moved(sum(read.values()), sum(written.values()), fresh))
        touched |= {*read, *written}
    return found


def _sizes(tensors: Iterable[Tensor]) -> dict[_Place, int]:
    """Bytes by where they lie, so that a tensor and its views are one."""
    return {
        (StorageWeakRef(tensor.untyped_storage()), int(tensor.storage_offset())): tensor.numel() * tensor.itemsize
        for tensor in tensors
    }
