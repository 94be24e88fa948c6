"""`mbv3fast bench`: every step timed beside its floor."""

from __future__ import annotations

import importlib
import json
from typing import Any

import pytest
import torch

import mbv3fast
from mbv3fast import ceilings
from mbv3fast.backend import Decision
from mbv3fast.cost import plan_cost
from mbv3fast.engine import Engine
from mbv3fast.fast import FusedMobileNetV3
from mbv3fast.gpus import GPUS
from tests.cli import run

bench = importlib.import_module("mbv3fast.cli.bench")  # whose package has a command of that name
QUICK = ("small", "--size", 32, "--rounds", 2, "--device", "cpu")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ceilings that take no time to know."""
    monkeypatch.setattr(ceilings, "_measured", lambda _: GPUS["orin"])


def data(*arguments: object) -> dict[str, Any]:
    result = run("bench", *QUICK, "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_json() -> None:
    found = data("--batch", 2)
    with torch.device("meta"):
        plan = mbv3fast.small().eval().plan()
    assert [step["step"] for step in found["steps"]] == [step.name for step in plan.steps]
    assert found["input"] == [2, 3, 32, 32]
    assert found["dtype"] == "float32"
    assert found["backend"] == "torch"
    assert found["chip_is_measured"] is True
    assert found["call_seconds"] > 0
    assert found["served_by_engine"] is True
    assert found["images_at_once"] == 2
    assert found["call_floor_seconds"] == pytest.approx(sum(step["floor_seconds"] for step in found["steps"]))
    for step, cost in zip(found["steps"], plan.costs((2, 3, 32, 32)), strict=True):
        assert step["seconds"] > 0 < step["floor_seconds"]
        assert step["bound"] in ("memory", "arithmetic")
        assert step["flops"] == pytest.approx(2 * cost.macs / step["seconds"])
        assert step["launches"] == cost.launches


def test_a_table() -> None:
    result = run("bench", *QUICK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0] == f"small, input [1, 3, 32, 32], float32, on {GPUS['orin'].name}"
    assert lines[1] == "measured here: memory 205 GB/s, cache 1,331 GB/s, arithmetic 5.30 TFLOP/s"
    assert lines[2].split() == ["step", "op", "input", "runs", "us", "floor", "us", "share", "bound", "GB/s", "GFLOP/s"]
    assert lines[3].split()[:3] == ["features.0", "stem_conv", "1x3x32x32"]
    assert any(line.startswith("all steps") for line in lines)
    assert lines[-2].startswith("a call")
    assert "images/s; its floor is " in lines[-2]
    assert lines[-1].startswith("served by   CPU")


def test_a_call_that_no_engine_serves_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU with backend torch, or where the self-check is against our kernels."""
    monkeypatch.setattr(FusedMobileNetV3, "explain", lambda *_: Decision(False, "too slow"))
    found = data()
    assert (found["served_by"], found["served_by_engine"]) == ("too slow", False)
    assert found["call_seconds"] > 0
    assert len(found["steps"]) == len(mbv3fast.small().eval().plan().steps)
    call, served = run("bench", *QUICK).stdout.splitlines()[-2:]
    assert call.endswith("images/s"), "its floor would be that of other launches"
    assert served == "served by   too slow; the steps above are of the plan for torch, which doesn't serve it"


def test_a_batch_that_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps are of as many images as run at once; a call's floor is that of its parts, the last of which is smaller."""
    monkeypatch.setattr(Engine, "images_at_once", lambda *_: 2)
    found = data("--batch", 5)
    assert found["input"] == [5, 3, 32, 32]
    assert {step["input"][0] for step in found["steps"]} == {2}
    plan = mbv3fast.small().eval().plan()
    two, one = (plan_cost(plan, (images, 3, 32, 32), GPUS["orin"]).total("floor_seconds") for images in (2, 1))
    assert found["call_floor_seconds"] == pytest.approx(2 * two + one)
    assert "steps of 2 images: the engine runs 5 in 3 parts" in run("bench", *QUICK, "--batch", 5).stdout


def test_the_floor_is_that_of_pytorchs_switch_for_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(bench, "tf32_allowed", lambda: "as it is")
    monkeypatch.setattr(bench, "plan_cost", lambda *args, tf32: seen.append(tf32) or plan_cost(*args))
    data()
    assert set(seen) == {"as it is"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--backend", "triton"), "'triton' can't serve torch.float32 on cpu"),
        (("--backend", "cuda"), "cuda"),
        (("--device", "tpu"), "tpu"),
        (("--batch", "0"), "--batch"),
        (("--rounds", "0"), "--rounds"),
        (("--batch", 10**8, "--size", 4000), "can't allocate memory"),
    ],
)
def test_refusals_are_a_line(arguments: tuple[object, ...], said: str) -> None:
    result = run("bench", *QUICK, *arguments)
    assert result.exit_code != 0
    assert said in result.output
    assert "Traceback" not in result.output
