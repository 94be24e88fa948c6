"""What the tuner times and keeps, with the reference for the kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from benchmarks import candidates as trying
from benchmarks.asks import Bench, Table
from benchmarks.candidates import candidates
from benchmarks.tune import tune_step
from mbv3fast.kernels.configs import HEURISTICS, Config
from mbv3fast.kernels.tuned import FAMILY
from mbv3fast.ops import OPS
from mbv3fast.ops.target import Target
from mbv3fast.plan import Step
from mbv3fast.steps import step_arguments
from tests.tables import CPU, HEADER, NEVER, PRODUCT

pytestmark = pytest.mark.usefixtures("folder")
HEURISTIC = {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}
Act = Callable[[Config, Tensor], Any]


class Stand:
    """A 1x1 convolution by its reference: `act` does something to its output, `times` are of configurations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, act: Act, times: Callable[[Config], float]) -> None:
        self.timed: list[Config] = []
        self.table, self.times = Table(path, HEADER), times
        reference = OPS["pointwise_conv"].reference

        def run(target: Target, **given: Any) -> Tensor:
            config = target.config("pointwise_conv", **PRODUCT)
            (out,) = reference(**given)
            if not out.is_meta:
                act(config, out)
            return out

        monkeypatch.setattr(OPS["pointwise_conv"], "run", run)

    def timer(self, run: Any) -> float:
        config = run.args[-1].overrides["pointwise_conv"]
        self.timed.append(config)
        return self.times(config)

    def tune(self) -> dict[str, Any]:
        """The entry that it gets."""
        tensors = {"weight": torch.empty(40, 32, 1, 1, device="meta"), "bias": torch.empty(40, device="meta")}
        step = Step("pointwise_conv", ("step",), {"x": "x"}, tensors, {"activation": "hardswish"})
        given = functools.partial(step_arguments, step, {"x": (1, 32, 10, 10)}, torch.float32)
        bench = Bench(CPU, Target(), HEADER, self.timer)
        tune_step(bench, self.table, step, functools.cache(given), NEVER)
        ops = FAMILY.read(path)["ops"] if (path := self.table._path).exists() else {}
        return ops["pointwise_conv"][0] if ops else {}


def nothing(config: Config, out: Tensor) -> None: ...


def test_the_fastest_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand = Stand(monkeypatch, tmp_path / "t.json", nothing, lambda config: 10 - (config["num_warps"] == 2))
    assert stand.tune() == {"sizes": PRODUCT, "config": {**HEURISTIC, "num_warps": 2}, "us": 9, "heuristic_us": 10}
    assert HEURISTICS["pointwise_conv"](**PRODUCT) == HEURISTIC
    assert stand.timed[:-2] == candidates("pointwise_conv", PRODUCT)
    assert stand.timed[-2:] == [HEURISTIC, {**HEURISTIC, "num_warps": 2}]


def test_what_hardly_gains_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand = Stand(monkeypatch, tmp_path / "t.json", nothing, lambda config: 10 - 0.2 * (config["num_warps"] == 2))
    assert stand.tune() == {"sizes": PRODUCT, "config": HEURISTIC, "us": 10, "heuristic_us": 10}


def test_luck_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The least of many times is the most wrong, so it is taken again."""
    luck = iter([1.0])
    stand = Stand(
        monkeypatch, tmp_path / "t.json", nothing, lambda config: next(luck, 10) if config["num_warps"] == 2 else 10
    )
    assert stand.tune()["config"] == HEURISTIC


@pytest.mark.parametrize("value", [1e-2, float("nan")])
def test_wrong_and_failing_candidates_are_dropped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any, value: float
) -> None:
    def act(config: Config, out: Tensor) -> None:
        if config["num_warps"] == 2:
            out[0, 1, 2, 3] += value * out.abs().max()
        if config["num_warps"] == 8:
            raise RuntimeError("out of resource: registers")

    speeds = {2: 1.0, 4: 10.0, 8: 2.0}
    stand = Stand(monkeypatch, tmp_path / "t.json", act, lambda config: speeds[config["num_warps"]])
    assert stand.tune()["config"] == HEURISTIC
    assert {config["num_warps"] for config in stand.timed} == {4}
    reports = [line for line in capsys.readouterr().out.splitlines() if line.startswith("dropped: pointwise_conv rows")]
    assert len(reports) == 2
    assert "'num_warps': 2" in reports[0]
    assert "computes something else" in reports[0]
    assert "'num_warps': 8" in reports[1]
    assert "out of resource: registers" in reports[1]


def test_an_output_that_is_not_written_looks_wrong() -> None:
    """Memory that a right output lay in is handed on with nothing of it."""
    right, memory = torch.ones(3), torch.ones(3)
    assert trying.fault(lambda: (memory,), (right,)) == ""
    assert trying.fault(lambda: (memory,), (right,)) == "computes something else"


def test_a_failing_heuristic_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    def act(*_: Any) -> None:
        raise RuntimeError("out of memory")

    stand = Stand(monkeypatch, tmp_path / "t.json", act, lambda _: 1.0)
    assert stand.tune() == {}
    assert stand.table.failed == 1
    assert "failed: pointwise_conv rows=100" in capsys.readouterr().out
