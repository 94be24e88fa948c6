"""Floors: the longest of what memory, tensor cores and CUDA cores must take, by the GPU's figures."""

from __future__ import annotations

from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from mbv3fast.cost import Floors, call_floor
from mbv3fast.launches import moved
from tests.costs import H100, SIZE, VARIANTS, launches_of, on, planned, sizes_of, slow, slow_products, window_macs

pytest.importorskip("triton")
tuned = pytest.importorskip("mbv3fast.kernels.tuned")
SLOW = (
    slow(half_flops=1.0),
    slow(fp32_flops=1.0),
    slow_products(float16=1.0, tf32=2.0),
    slow(memory_bandwidth=1.0),
    slow(l2_bandwidth=1.0),
)


@pytest.fixture(autouse=True)
def no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are no timed configurations, so that launches are those of the heuristics."""
    monkeypatch.setattr(tuned, "TABLES", tmp_path)


@pytest.mark.parametrize(
    ("dtype", "tf32", "tensor", "cuda"),
    [
        (torch.float16, False, "float16", "half_flops"),
        (torch.bfloat16, False, "bfloat16", "half_flops"),
        (torch.float32, True, "tf32", "fp32_flops"),
        (torch.float32, False, None, "fp32_flops"),
    ],
)
@pytest.mark.parametrize("images", [1, 128])
def test_the_floor_is_the_longest_of_three(
    images: int, dtype: torch.dtype, tf32: bool, tensor: str | None, cuda: str
) -> None:
    """Where the cache holds everything, or has nothing that a step reads."""
    gpu, plan = replace(H100, l2_bytes=1 << 60), planned("small", dtype=dtype)
    launches, bounds = launches_of(plan, images), set()
    for step, cost in zip(plan.steps, on(gpu, images, plan, tf32).steps, strict=True):
        summed = window_macs(plan, step, images) if tensor else cost.macs
        products = 2 * (cost.macs - summed) / gpu.tensor_flops[tensor] if tensor else 0.0
        arithmetic = {"tensor cores": products, "CUDA cores": 2 * summed / getattr(gpu, cuda)}
        warm = cost.compulsory / gpu.l2_bandwidth
        fresh = [
            (each.all / gpu.l2_bandwidth, each.fresh / gpu.memory_bandwidth) for each in moved(launches[step.name])
        ]
        cold = sum(map(max, fresh))
        for memory, floor, bound in ((warm, *cost.floors[:2]), (cold, *cost.floors[2:])):
            seconds = {"memory": memory, **arithmetic}
            assert floor == pytest.approx(max(seconds.values())), step.name
            assert floor == pytest.approx(seconds[bound]), step.name
            bounds.add(bound)
    wanted = {"memory", "CUDA cores"} if tensor is None else {"memory"} if images == 1 else {"memory", "tensor cores"}
    assert bounds == wanted


def test_memory_is_that_of_each_launch() -> None:
    gpu, plan = slow(memory_bandwidth=1e9, l2_bandwidth=1e12, l2_bytes=100_000), planned("large")
    launches = launches_of(plan)
    for step in on(gpu, plan=plan).steps:
        moves = moved(launches[step.name])
        warm = sum(gpu.memory_seconds(each.read, each.written) for each in moves)
        cold = sum(gpu.memory_seconds(each.read, each.written, fresh=each.fresh) for each in moves)
        assert step.floors == (pytest.approx(warm), "memory", pytest.approx(cold), "memory")
    total = on(replace(gpu, l2_bytes=0), plan=plan).total
    assert total("floor_seconds") == pytest.approx(total("compulsory") / 1e9) == total("streamed_seconds")


def test_units_of_the_floor() -> None:
    """Windows take CUDA cores, in packed halves; all else may take tensor cores, whatever our kernels do."""
    for variant in VARIANTS:
        plan = planned(variant)
        windows = sum(window_macs(plan, step) for step in plan.steps)
        halves, wide, products = (on(gpu, plan=plan).total("floor_seconds") for gpu in SLOW[:3])
        assert halves == pytest.approx(2 * windows)
        assert wide < 1e-20
        assert products == pytest.approx(2 * (on(H100, plan=plan).total("macs") - windows))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("images", [1, 128])
def test_a_call_by_itself_has_the_floor_of_its_step(images: int, tf32: bool, dtype: torch.dtype) -> None:
    """Where that is one launch; and of any where arithmetic is slow."""
    plan = planned("large", dtype=dtype)
    launches, ops = launches_of(plan, images), set()
    for gpu in (H100, *SLOW):
        for step, cost in zip(plan.steps, on(gpu, images, plan, tf32).steps, strict=True):
            (read, written, fresh), *others = moved(launches[step.name])
            if others and gpu not in SLOW[:3]:
                continue
            found = call_floor(step.op, sizes_of(plan, step, images), read, written, dtype, gpu, tf32=tf32)
            assert fresh == read
            assert found == Floors(*(x if isinstance(x, str) else pytest.approx(x, abs=1e-20) for x in cost.floors))
            ops.add(step.op)
    assert ops == {step.op for step in plan.steps}


def test_a_row_has_the_floor_of_its_view() -> None:
    """In results a cold cache has the cold floor, and both go by the same names."""
    facts = pytest.importorskip("benchmarks.conftest")._facts

    class Case:
        def facts(self) -> dict[str, Any]:
            return {"bytes": 1, "floors": Floors(1.0, "memory", 2.0, "CUDA cores")}

    assert facts(Case(), "device warm") == {"bytes": 1, "floor_s": 1.0, "bound": "memory"} == facts(Case(), "latency")
    assert facts(Case(), "device cold") == {"bytes": 1, "floor_s": 2.0, "bound": "CUDA cores"}


def test_the_floors_of_cases_are_those_of_the_chip_at_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = pytest.importorskip("benchmarks.contest.step_cases")
    monkeypatch.setattr(cases, "chip_of", lambda _: (H100, False))
    cases._plan_cost.cache_clear()
    for dtype in ("float16", "float32"):
        step = cases.StepCase("large", dtype, 1, SIZE, "triton", 2)
        op = cases.OpCase.of(*step._step(), dtype)
        found, wanted = op.facts(), step.facts()
        assert found["macs"] == wanted["macs"]
        assert 0 <= wanted["bytes"] - found["bytes"] <= 4 * 64, "whose bias is in float32"
        assert found["floors"].bound == wanted["floors"].bound
        assert found["floors"].cold_floor_seconds == pytest.approx(wanted["floors"].cold_floor_seconds, rel=1e-3)
    cases._plan_cost.cache_clear()


def test_a_librarys_steps_have_floors_alone() -> None:
    plan, gpu = planned("large", "torch"), slow(memory_bandwidth=1e9, l2_bandwidth=1e12, l2_bytes=100_000)
    shapes, cost = plan.shapes((1, 3, SIZE, SIZE)), on(gpu, plan=plan)
    assert cost.total("launches") == 139
    assert cost.total("estimate_seconds") is None
    for source, step in zip(plan.steps, cost.steps, strict=True):
        assert {step.programs, step.serial, step.halo, step.issued, step.dots, step.fmas} == {None}
        assert (step.cuda_macs > 0) == (step.op == "depthwise_conv")
        assert step.compulsory == step.bytes_read + step.bytes_written + step.weight_bytes
        moves = (step.bytes_read + step.weight_bytes, step.bytes_written)
        fresh = 2 * sum(prod(shapes[name]) for name in source.inputs.values()) + step.weight_bytes
        warm, cold = (gpu.memory_seconds(*moves, fresh=new, launches=step.launches) for new in (0, fresh))
        assert step.floors == (pytest.approx(warm), "memory", pytest.approx(cold), "memory")


def test_a_library_may_always_multiply_in_tf32() -> None:
    """PyTorch's convolutions do unless they are told not to, whatever the switch for products says."""
    plan = planned("small", "torch", torch.float32)
    cost = on(slow_products(tf32=2.0), plan=plan)
    products = cost.total("macs") - sum(window_macs(plan, step) for step in plan.steps)
    assert cost.total("floor_seconds") == pytest.approx(products)
