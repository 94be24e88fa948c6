"""The estimate: each of its terms by itself, on GPUs on which that alone takes time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mbv3fast import cost as costs
from mbv3fast.cost import plan_cost
from mbv3fast.gpus import Gpu
from mbv3fast.launches import moved
from mbv3fast.plan import Plan
from tests.costs import IDLE, NEVER, launches_of, on, planned, slow, slow_products

pytest.importorskip("triton")
configs = pytest.importorskip("mbv3fast.kernels.configs")
tuned = pytest.importorskip("mbv3fast.kernels.tuned")
works = pytest.importorskip("mbv3fast.kernels.work")
work = works.work
FLOAT = torch.float32


@pytest.fixture(autouse=True)
def _no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No timed configurations, and ports that take no time."""
    monkeypatch.setattr(tuned, "TABLES", tmp_path)
    monkeypatch.setattr(configs, "PORT", NEVER)


def busiest(launch: Any) -> float:
    """Times what the busiest of 132 multiprocessors has to what it would have if all had alike."""
    return -(-launch.grid // 132) * 132 / launch.grid


def check(gpu: Gpu, expected: Callable[[Any], float], plan: Plan | None = None, images: int = 1, **how: bool) -> None:
    """That each step takes what `expected` says of its launches, besides gaps and trips of microseconds."""
    plan = plan or planned("small")
    for name, step in zip(launches_of(plan), on(gpu, images, plan, **how).steps, strict=True):
        seconds = sum(map(expected, launches_of(plan, images)[name]))
        assert step.estimate_seconds == pytest.approx(seconds, rel=1e-3, abs=1e-3), name


def test_where_nothing_else_takes_time_it_is_gaps_and_trips() -> None:
    endless = replace(IDLE, sms=10**9)
    for gpu, gap in ((endless, configs.OVERLAPPED_GAP), (replace(endless, capability=(8, 0)), configs.GAP)):
        for step in on(gpu).steps:
            assert step.serial is not None
            assert step.estimate_seconds == pytest.approx(step.launches * gap + step.serial * costs.TRIP, rel=1e-6)


def test_programs_come_in_waves_of_as_many_warps_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "TRIP", 1.0)
    seen = set()

    def seconds(launch: Any) -> int:
        resident = {2: 16, 4: 16, 8: 8}[launch.constants["num_warps"]]
        waves = -(-launch.grid // (132 * resident))
        seen.add((resident, waves > 1))
        return waves * work(launch).serial

    check(IDLE, seconds, images=128)
    assert seen == {(16, False), (16, True), (8, False), (8, True)}


@pytest.mark.parametrize("num_warps", [1, 2, 4, 8, 16, 32, 128])
def test_a_multiprocessor_holds_a_number_of_programs_and_of_warps(
    num_warps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(costs, "TRIP", 1.0)
    done = works.Work(programs=132 * 16 * 8, serial=1, issued=0)
    waves = {1: 8, 2: 8, 4: 8, 8: 16, 16: 32, 32: 64, 128: 128}[num_warps]
    rates = costs._Rates.of(torch.float16, False, IDLE)
    assert costs._estimate(done, 0, num_warps, rates, IDLE) == pytest.approx(waves, rel=1e-3)


def test_memory_is_the_caches_where_a_launch_fits_and_else_streams() -> None:
    gpu = slow(memory_bandwidth=1.0, l2_bytes=400_000)

    def seconds(launch: Any) -> int:
        (each,) = moved([launch])
        return each.all * (each.all > 400_000)

    check(gpu, seconds)
    fast = replace(gpu, memory_bandwidth=2e40, l2_bandwidth=1.0)
    check(fast, lambda launch: max(from_l2(launch) / 0.6, moved([launch])[0].all * (not seconds(launch))))


def from_l2(launch: Any) -> int:
    return work(launch).issued - work(launch).repeated


def test_ports_take_what_a_program_reads_first_and_caches_twice_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(configs, "PORT", 1.0)
    longest = set()

    def seconds(launch: Any) -> float:
        ports = {"from L2": from_l2(launch), "from L1": work(launch).issued / 2}
        longest.add(max(ports, key=lambda name: ports[name]))
        return max(ports.values()) * busiest(launch) / 132

    check(IDLE, seconds)
    assert longest == {"from L2", "from L1"}


@pytest.mark.parametrize("images", [1, 128])
def test_products_and_sums_are_those_launched(images: int) -> None:
    def products(launch: Any) -> float:
        return work(launch).dots * busiest(launch) / costs.PRODUCTS

    def sums(launch: Any) -> float:
        return work(launch).fmas * busiest(launch) / costs.SUMS

    def both(launch: Any) -> float:
        return (work(launch).dots + work(launch).fmas) * busiest(launch) / costs.SUMS

    wide = planned("small", dtype=FLOAT)
    check(slow_products(float16=2.0), products, images=images)
    check(slow(fp32_flops=2.0), sums, images=images)
    check(slow(fp32_flops=2.0), both, wide, images)
    check(slow_products(tf32=2.0), products, wide, images, tf32=True)
    check(slow(fp32_flops=2.0), sums, wide, images, tf32=True)


def test_constants_are_those_that_the_document_has() -> None:
    document = (Path(__file__).parent.parent / "docs" / "cost-model.md").read_text(encoding="utf-8")
    rows = {row.split("|")[1].strip(): row.split("|")[2].strip() for row in document.splitlines() if "|" in row}
    assert rows["`TRIP`"] == f"{costs.TRIP * 1e6:g} us"
    assert rows["`GAP`, `OVERLAPPED_GAP`"] == f"{configs.GAP * 1e6:g} us, {configs.OVERLAPPED_GAP * 1e6:g} us"
    assert rows["`WARPS`, `PROGRAMS`"] == f"{costs.WARPS}, {costs.PROGRAMS}"
    assert rows["`PRODUCTS`, `SUMS`, `CACHED`"] == f"{costs.PRODUCTS}, {costs.SUMS}, {costs.CACHED}"


def test_halo_is_below_1_where_a_window_skips_pixels() -> None:
    """A stride of 8 leaves out rows and columns; the step's other launches have no window."""
    plan = planned("large")
    step = next(step for step in plan.steps if step.op == "depthwise_excite_project" and "residual" not in step.inputs)
    channels = step.tensors["weight"].shape[0]
    skips = replace(step, inputs={"x": "x"}, options={**step.options, "stride": 8, "padding": (0, 0, 0, 0)})
    kernel = step.tensors["weight"].shape[2]
    side = kernel + 8 * 6
    (found,) = plan_cost(replace(plan, steps=(skips,)), (1, channels, side, side), IDLE).steps
    assert found.halo == pytest.approx((7 * kernel / side) ** 2)
    assert found.launches > 1
