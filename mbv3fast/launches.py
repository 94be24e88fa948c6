"""The launches of a whole plan, seen and not made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from mbv3fast.ops import OPS
from mbv3fast.ops.target import Target
from mbv3fast.plan import Plan, Shape, Step
from mbv3fast.traffic import Traffic, dry_run, storages, traffic_of

if TYPE_CHECKING:
    from mbv3fast.kernels._common import Launch


class PlannedLaunch(NamedTuple):
    """A launch of a plan, the step that makes it, and the bytes that it moves beside its weights."""

    step: Step
    launch: Launch
    traffic: Traffic


def planned_launches(plan: Plan, shape: Shape, target: Target | None = None) -> Iterator[PlannedLaunch]:
    """Every launch of a Triton plan for an input of `shape` [N, C, H, W], in order; configured for the H100 unless a
    `target` says otherwise.
    """
    shapes = plan.shapes(shape)
    for step in plan.steps:
        inputs = {argument: shapes[name] for argument, name in step.inputs.items()}
        launches, _ = dry_run(OPS[step.op], inputs, step.tensors, step.options, plan.dtype, target)
        weights = storages(step.tensors)
        for launch in launches:
            yield PlannedLaunch(step, launch, traffic_of([launch], weights))
