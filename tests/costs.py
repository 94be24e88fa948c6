"""What the tests of the cost model share: plans without data, their costs, GPUs on which one thing alone is slow."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch

import mbv3fast
from mbv3fast.cost import PlanCost, plan_cost
from mbv3fast.gpus import GPUS, Gpu
from mbv3fast.launches import planned_launches
from mbv3fast.plan import Plan, Step
from mbv3fast.tables import Variant

VARIANTS: tuple[Variant, ...] = ("large", "small")
SIZE, H100 = 224, GPUS["h100"]
NEVER = 1e40  # operations or bytes a second, of what takes no time
IDLE = replace(
    H100,
    memory_bandwidth=NEVER,
    l2_bandwidth=NEVER,
    fp32_flops=NEVER,
    half_flops=NEVER,
    tensor_flops=MappingProxyType(dict.fromkeys(("float16", "bfloat16", "tf32"), NEVER)),
)


def slow(**changes: Any) -> Gpu:
    """An H100 on which only what is given takes time."""
    return replace(IDLE, **changes)


def slow_products(**rates: float) -> Gpu:
    """By dtype."""
    return slow(tensor_flops=MappingProxyType(rates))


@functools.cache
def planned(variant: Variant, backend: str = "triton", dtype: torch.dtype = torch.float16) -> Plan:
    with torch.device("meta"):
        return getattr(mbv3fast, variant)(backend=backend).to(dtype).eval().plan()


def on(gpu: Gpu, images: int = 1, plan: Plan | None = None, tf32: bool = False) -> PlanCost:
    """Of the Small in float16 where no plan is given."""
    return plan_cost(plan or planned("small"), (images, 3, SIZE, SIZE), gpu, tf32=tf32)


def launches_of(plan: Plan, images: int = 1) -> dict[str, list[Any]]:
    """By step, as configured for the H100."""
    found: dict[str, list[Any]] = {}
    for step, launch, _ in planned_launches(plan, (images, 3, SIZE, SIZE)):
        found.setdefault(step.name, []).append(launch)
    return found


def sizes_of(plan: Plan, step: Step, images: int = 1) -> Mapping[str, int]:
    shapes = plan.shapes((images, 3, SIZE, SIZE))
    return step.sizes({argument: shapes[name] for argument, name in step.inputs.items()})


def window_macs(plan: Plan, step: Step, images: int = 1) -> int:
    """Multiply-adds of a depthwise convolution, 0 for a step without one."""
    if not step.op.startswith("depthwise"):
        return 0
    sizes = sizes_of(plan, step, images)
    return images * sizes["P"] * sizes["Q"] * sizes["C"] * sizes["k"] ** 2
