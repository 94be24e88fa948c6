"""The cost model's counts: of the plan's launches on a GPU, as they are configured there."""

from __future__ import annotations

import functools
from dataclasses import fields
from math import prod
from pathlib import Path

import pytest
import torch

from mbv3fast.cost import Cost, PlanCost
from mbv3fast.gpus import GPUS
from mbv3fast.launches import moved, planned_launches
from mbv3fast.ops.target import Target
from mbv3fast.plan import StepCost
from mbv3fast.tables import Variant
from tests.costs import H100, SIZE, VARIANTS, launches_of, on, planned

pytest.importorskip("triton")
tuned = pytest.importorskip("mbv3fast.kernels.tuned")


@pytest.fixture(autouse=True)
def no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where there are no timed configurations, so that launches are those of the heuristics."""
    monkeypatch.setattr(tuned, "TABLES", tmp_path)
    return tmp_path


@functools.cache
def cost(variant: Variant, images: int = 1, gpu: str = "h100", backend: str = "triton") -> PlanCost:
    return on(GPUS[gpu], images, planned(variant, backend))


@pytest.mark.parametrize("backend", ["triton", "torch"])
@pytest.mark.parametrize(("variant", "macs"), [("large", 216.59), ("small", 56.50)])
def test_macs(variant: Variant, macs: float, backend: str) -> None:
    assert round(cost(variant, backend=backend).total("macs") / 1e6, 2) == macs


def test_the_plans_bytes() -> None:
    """15.4 MB of activations as passed to launches, 15.0 with each tensor once; sums and scales are another 0.4."""
    large = cost("large")
    assert round((large.total("bytes_read") + large.total("bytes_written")) / 1e6, 1) == 15.4
    assert round(large.total("partial_bytes") / 1e6, 1) == 0.4
    once = large.total("compulsory") - large.total("partial_bytes") - large.total("weight_bytes")
    assert round(once / 1e6, 1) == 15.0


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("images", [1, 128])
@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_done_covers_what_must_be(variant: Variant, images: int, gpu: str) -> None:
    for step in cost(variant, images, gpu).steps:
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
        assert step.floor_seconds <= step.cold_floor_seconds
        assert step.cold_bound != "memory" or step.cold_floor_seconds <= step.streamed_seconds
        assert step.streamed_seconds == pytest.approx(step.compulsory / GPUS[gpu].memory_bandwidth)


@pytest.mark.parametrize("images", [1, 128])
@pytest.mark.parametrize("variant", VARIANTS)
def test_no_value_is_counted_twice_within_a_launch(variant: Variant, images: int) -> None:
    """And the first block of the Large, whose residual is its input, is passed one twice."""
    plan, shape = planned(variant), (images, 3, SIZE, SIZE)
    shapes, twice = plan.shapes(shape), {}
    launches = launches_of(plan, images)
    for step, counted in zip(plan.steps, cost(variant, images).steps, strict=True):
        given = list(step.inputs.values())
        again = sum(prod(shapes[name]) for name in given) - sum(prod(shapes[name]) for name in set(given))
        passed = counted.bytes_read + counted.bytes_written + counted.partial_bytes + counted.weight_bytes
        assert counted.compulsory == passed - 2 * again, step.name
        if again:
            twice[step.name] = again
        inputs = 2 * sum(prod(shapes[name]) for name in set(given))
        assert sum(each.fresh for each in moved(launches[step.name])) == inputs + counted.weight_bytes, step.name
    assert twice == ({"features.1.block.1": images * 16 * 112 * 112} if variant == "large" else {})


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_steps_are_those_of_the_plan(backend: str) -> None:
    """Where no configurations were timed, for which a plan counts."""
    counts = planned("large", backend).costs((1, 3, SIZE, SIZE))
    for step, counted in zip(cost("large", backend=backend).steps, counts, strict=True):
        for field in fields(StepCost):
            assert getattr(step, field.name) == getattr(counted, field.name), (step.name, field)


def test_launches_are_configured_for_the_gpu() -> None:
    """A chip of few multiprocessors has bigger blocks, and fewer programs."""
    shape = (1, 3, SIZE, SIZE)
    for gpu in (GPUS["h100"], GPUS["orin"]):
        grids: dict[str, list[int]] = {}
        for launch in planned_launches(planned("large"), shape, Target(gpu.sms)):
            grids.setdefault(launch.step.name, []).append(launch.launch.grid)
        assert [step.programs for step in on(gpu, plan=planned("large")).steps] == [min(g) for g in grids.values()]
    assert cost("large", gpu="orin").total("programs") < cost("large").total("programs") / 2


def test_launches_are_configured_by_the_gpus_table(no_tables: Path) -> None:
    """A plan without a GPU is counted for the heuristics' launches all the same."""
    from tests.tables import entry, product, write

    write(no_tables, {"pointwise_conv": [entry(product(), rows=112 * 112, outputs=64, inputs=16)]})
    step = next(step for step in on(H100, plan=planned("large")).steps if step.name == "features.2.block.0")
    (launch,) = launches_of(planned("large"))[step.name]
    assert step.programs == 112 * 112 // 16 * (64 // 16)
    assert launch.grid < step.programs
    assert on(GPUS["h200"], plan=planned("large")).steps[2].programs == launch.grid


def test_who_multiplies_as_launched() -> None:
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
    assert by_op[1]["depthwise_project"][0].cuda_macs == 9 * 16 * 112 * 112
    last, many = by_op[1]["depthwise_excite_project"][-1], by_op[128]["depthwise_excite_project"][-1]
    assert last.cuda_macs == 25 * 960 * 49 + 2 * 960 * 240
    assert many.cuda_macs == 128 * 25 * 960 * 49
    wide = planned("small", dtype=torch.float32)
    assert all(step.cuda_macs == step.macs for step in on(H100, plan=wide).steps)
    assert on(H100, plan=wide, tf32=True).total("cuda_macs") < on(H100, plan=wide).total("macs") / 2
