"""`mbv3fast bench`: every step timed beside its floor."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import mbv3fast
from mbv3fast import ceilings
from mbv3fast.gpus import GPUS
from tests.cli import run

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
    for step, cost in zip(found["steps"], plan.costs((2, 3, 32, 32)), strict=True):
        assert step["seconds"] > 0 < step["floor_seconds"]
        assert step["bound"] in ("memory", "arithmetic")
        assert step["flops"] == pytest.approx(2 * cost.macs / step["seconds"])
        assert step["launches"] == cost.launches


def test_a_table() -> None:
    result = run("bench", *QUICK)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith("small, input [1, 3, 32, 32], float32, on Orin (measured here: 205 GB/s, 5.30 TFLOP/s")
    assert lines[1].split() == ["step", "op", "input", "runs", "us", "floor", "us", "share", "bound", "GB/s", "GFLOP/s"]
    assert lines[2].split()[:3] == ["features.0", "stem_conv", "1x3x32x32"]
    assert any(line.startswith("all steps") for line in lines)
    assert lines[-2].startswith("a call")
    assert "images/s" in lines[-2]
    assert lines[-1].startswith("served by   CPU")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--backend", "triton"), "'triton' can't serve torch.float32 on cpu"),
        (("--backend", "cuda"), "cuda"),
        (("--device", "tpu"), "tpu"),
        (("--batch", "0"), "--batch"),
        (("--rounds", "0"), "--rounds"),
    ],
)
def test_refusals_are_a_line(arguments: tuple[str, ...], said: str) -> None:
    result = run("bench", *QUICK, *arguments)
    assert result.exit_code != 0
    assert said in result.output
    assert "Traceback" not in result.output
