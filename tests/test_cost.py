"""The cost model: what it counts, floors that follow from the GPU's figures, and what the estimate is made of."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import pytest
import torch

import mbv3fast
from mbv3fast import cost as costs
from mbv3fast.cost import Cost, PlanCost, plan_cost
from mbv3fast.gpus import GPUS, Gpu
from mbv3fast.launches import planned_launches
from mbv3fast.ops.target import Target
from mbv3fast.plan import Plan
from mbv3fast.tables import Variant

pytest.importorskip("triton")
work = pytest.importorskip("mbv3fast.kernels.work").work
VARIANTS: tuple[Variant, ...] = ("large", "small")
SIZE, H100 = 224, GPUS["h100"]
NEVER = 1e40  # operations or bytes a second, of what takes no time
IDLE: dict[str, Any] = {
    "memory_bandwidth": NEVER,
    "l2_bandwidth": NEVER,
    "fp32_flops": NEVER,
    "tensor_flops": MappingProxyType(dict.fromkeys(("float16", "bfloat16", "tf32"), NEVER)),
}


@functools.cache
def planned(variant: Variant, backend: str = "triton", dtype: torch.dtype = torch.float16) -> Plan:
    with torch.device("meta"):
        return getattr(mbv3fast, variant)(backend=backend).to(dtype).eval().plan()


@functools.cache
def cost(variant: Variant, images: int = 1, gpu: str = "h100", backend: str = "triton") -> PlanCost:
    return plan_cost(planned(variant, backend), (images, 3, SIZE, SIZE), GPUS[gpu])


def on(gpu: Gpu, images: int = 1, plan: Plan | None = None) -> PlanCost:
    return plan_cost(plan or planned("small"), (images, 3, SIZE, SIZE), gpu)


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize(("variant", "macs"), [("large", 216.59), ("small", 56.50)])
def test_macs(variant: Variant, macs: float, backend: str) -> None:
    assert round(cost(variant, backend=backend).total("macs") / 1e6, 2) == macs


def test_the_plans_bytes() -> None:
    """15.4 MB of activations, residuals and head among them; sums and scales are another 0.4."""
    large = cost("large")
    assert round((large.total("bytes_read") + large.total("bytes_written")) / 1e6, 1) == 15.4
    assert round(large.total("partial_bytes") / 1e6, 1) == 0.4


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("images", [1, 128])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_done_covers_what_must_be(variant: Variant, images: int, gpu: str) -> None:
    for step in cost(variant, images, gpu).steps:
        assert step.compulsory == step.bytes_read + step.bytes_written + step.partial_bytes + step.weight_bytes
        assert step.issued is not None
        assert step.dots is not None
        assert step.fmas is not None
        assert step.estimate_seconds is not None
        assert step.halo is not None
        assert step.issued >= step.compulsory, step.name
        assert step.dots >= step.macs - step.cuda_macs, step.name
        assert step.fmas >= step.cuda_macs, step.name
        assert step.halo >= 1
        assert 0 < step.floor_seconds < step.estimate_seconds, step.name


def test_steps_are_those_of_the_plan() -> None:
    shape = (1, 3, SIZE, SIZE)
    for backend in ("triton", "torch"):
        for step, counted in zip(
            cost("large", backend=backend).steps, planned("large", backend).costs(shape), strict=True
        ):
            for field in (
                "op",
                "name",
                "bytes_read",
                "bytes_written",
                "weight_bytes",
                "partial_bytes",
                "macs",
                "launches",
            ):
                assert getattr(step, field) == getattr(counted, field), (step.name, field)


def test_launches_are_configured_for_the_gpu() -> None:
    """A chip of few multiprocessors has bigger blocks, and fewer programs."""
    shape = (1, 3, SIZE, SIZE)
    for gpu in (GPUS["h100"], GPUS["orin"]):
        grids: dict[str, list[int]] = {}
        for launch in planned_launches(planned("large"), shape, Target(gpu.sms)):
            grids.setdefault(launch.step.name, []).append(launch.launch.grid)
        assert [step.programs for step in on(gpu, plan=planned("large")).steps] == [min(g) for g in grids.values()]
    assert cost("large", gpu="orin").total("programs") < cost("large").total("programs") / 2


@pytest.mark.parametrize("images", [1, 128])
def test_the_floor_is_the_longest_of_three(images: int) -> None:
    gpu = replace(H100, l2_bytes=1 << 60)
    for step in on(gpu, images).steps:
        seconds = {
            "memory": step.compulsory / gpu.l2_bandwidth,
            "tensor cores": 2 * (step.macs - step.cuda_macs) / gpu.tensor_flops["float16"],
            "CUDA cores": 2 * step.cuda_macs / gpu.fp32_flops,
        }
        assert step.floor_seconds == pytest.approx(max(seconds.values()))
        assert step.floor_seconds == pytest.approx(seconds[step.bound])


def test_memory_is_the_caches_where_a_launch_fits() -> None:
    gpu = replace(H100, **{**IDLE, "memory_bandwidth": 1e9, "l2_bandwidth": 1e12})
    assert on(replace(gpu, l2_bytes=0)).total("floor_seconds") == pytest.approx(on(gpu).total("compulsory") / 1e9)
    assert on(gpu).total("floor_seconds") == pytest.approx(on(gpu).total("compulsory") / 1e12)
    halfway = replace(gpu, l2_bytes=1_000_000)
    for step, whole in zip(on(halfway).steps, on(gpu).steps, strict=True):
        assert step.bound == "memory"
        if step.launches == 1:
            rate = 1e12 if step.compulsory <= halfway.l2_bytes else 1e9
            assert step.floor_seconds == pytest.approx(step.compulsory / rate)
        else:
            assert whole.floor_seconds <= step.floor_seconds <= step.compulsory / 1e9


def test_who_multiplies() -> None:
    """Windows and what has few rows on CUDA cores; squeeze-excite of many images on tensor cores."""
    by_op: dict[int, dict[str, list[Cost]]] = {1: {}, 128: {}}
    for images, found in by_op.items():
        for step in cost("large", images).steps:
            found.setdefault(step.op, []).append(step)
    for found in by_op.values():
        assert all(step.cuda_macs == step.macs for step in found["stem_conv"])
        assert all(step.cuda_macs == 0 for step in found["pointwise_conv"])
    assert [step.cuda_macs == step.macs for step in (*by_op[1]["linear"], *by_op[128]["linear"])] == [True, False]
    mean = by_op[1]["pointwise_mean_linear"][0]
    assert mean.cuda_macs == 960 * 1280
    assert by_op[128]["pointwise_mean_linear"][0].cuda_macs == 0
    depthwise = by_op[1]["depthwise_project"][0]
    assert depthwise.cuda_macs == 9 * 16 * 112 * 112
    last, many = by_op[1]["depthwise_excite_project"][-1], by_op[128]["depthwise_excite_project"][-1]
    assert last.cuda_macs == 25 * 960 * 49 + 2 * 960 * 240
    assert many.cuda_macs == 128 * 25 * 960 * 49


def test_float32_is_exact_in_our_kernels_and_tf32_in_a_librarys() -> None:
    ours, theirs = (planned("small", backend, torch.float32) for backend in ("triton", "torch"))
    assert all(step.cuda_macs == step.macs for step in on(H100, plan=ours).steps)
    gpu = replace(H100, **{**IDLE, "tensor_flops": MappingProxyType({"tf32": 1e9})})
    steps = on(gpu, plan=theirs).steps
    assert sum(step.floor_seconds for step in steps) == pytest.approx(
        sum(2 * (step.macs - step.cuda_macs) / 1e9 for step in steps), rel=1e-6
    )


def test_a_librarys_steps_have_floors_alone() -> None:
    steps = cost("large", backend="torch").steps
    assert sum(step.launches for step in steps) == 139
    for step in steps:
        assert {step.programs, step.serial, step.halo, step.issued, step.dots, step.fmas, step.estimate_seconds} == {
            None
        }
        assert step.floor_seconds > 0
        assert (step.cuda_macs > 0) == (step.op == "depthwise_conv")
    assert cost("large", backend="torch").total("estimate_seconds") is None
    gpu = replace(H100, **{**IDLE, "memory_bandwidth": 1e9, "l2_bandwidth": 1e12, "l2_bytes": 100_000})
    for step in on(gpu, plan=planned("large", "torch")).steps:
        cached = min(step.compulsory, step.launches * 100_000)
        assert step.floor_seconds == pytest.approx(cached / 1e12 + (step.compulsory - cached) / 1e9)


def test_where_nothing_else_takes_time_the_estimate_is_gaps_and_trips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "PORT", NEVER)
    endless = replace(H100, **IDLE, sms=10**9)
    for gpu, gap in ((endless, costs.OVERLAPPED_GAP), (replace(endless, capability=(8, 0)), costs.GAP)):
        for step in on(gpu).steps:
            assert step.serial is not None
            assert step.estimate_seconds == pytest.approx(step.launches * gap + step.serial * costs.TRIP, rel=1e-6)


@pytest.mark.parametrize(
    ("slow", "counted"),
    [
        ({"l2_bandwidth": 1.0}, lambda work: (work.issued - work.repeated) / costs.CACHED),
        ({"tensor_flops": MappingProxyType({"float16": 2.0})}, lambda work: work.dots / costs.PRODUCTS),
        ({"fp32_flops": 2.0}, lambda work: work.fmas / costs.SUMS),
    ],
)
def test_the_estimate_counts_what_is_launched(slow: dict[str, Any], counted: Any) -> None:
    """Where one thing is slow: as long as that takes, or, in products and sums, the busiest multiprocessor's part."""
    gpu = replace(H100, **{**IDLE, **slow, "l2_bytes": 1 << 60})
    planned_work: dict[str, list[float]] = {}
    for step, launch, _ in planned_launches(planned("small"), (1, 3, SIZE, SIZE)):
        busiest = 1 if "l2_bandwidth" in slow else -(-launch.grid // gpu.sms) * gpu.sms / launch.grid
        planned_work.setdefault(step.name, []).append(counted(work(launch)) * busiest)
    for step in on(gpu).steps:
        assert step.estimate_seconds == pytest.approx(sum(planned_work[step.name]), rel=1e-3, abs=1e-3)
