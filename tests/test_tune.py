"""The tuner without a GPU: tables of dry runs, cut and gone on with."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks import candidates as trying
from benchmarks import tune as tuning
from benchmarks.asks import Ask, Bench, Table
from benchmarks.tune import main, meta_plans, tune_step
from mbv3fast.cuda import tuned as cuda_tables
from mbv3fast.kernels import tuned as tables
from mbv3fast.kernels.configs import HEURISTICS, Config
from mbv3fast.kernels.tuned import FAMILY, tuned
from mbv3fast.ops.target import Target
from mbv3fast.steps import step_arguments
from tests.tables import HEADER, META, NEVER, PRODUCT, entry, planned_asks, product

pytestmark = pytest.mark.usefixtures("folder")


def run_dry(path: Path, *arguments: str) -> int:
    return main(["--dry-run", "--out", str(path), "--batches", "1", *arguments])


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of a whole dry run at batch 1."""
    path = tmp_path_factory.mktemp("dry") / "dry-run.json"
    assert run_dry(path) == 0
    return path


def test_a_dry_run_writes_a_table_that_is_read(dry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "TABLES", dry.parent)
    table = FAMILY.read(dry)
    assert table["gpu"] == "dry run"
    for op, entries in table["ops"].items():
        for timed in entries:
            assert tuned("dry run", op, timed["sizes"]) == timed["config"]
            won = timed["config"] != HEURISTICS[op](**timed["sizes"])
            most = timed["heuristic_us"] * (0.97 if won else 1) + 1e-3
            assert timed["us"] <= most, timed


def test_a_table_answers_all_that_plans_ask_since_they_have_it(dry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is not what they ask without it: the parts of a squeeze follow from its configuration."""
    monkeypatch.setattr(tables, "TABLES", dry.parent)
    asks = planned_asks(1, torch.float16, Target(chip="dry run"))
    assert {ask.op for ask in asks} == HEURISTICS.keys() - {"squeeze", "apply_scale"}
    assert [ask for ask in asks if tuned("dry run", *ask) is None] == []
    without = planned_asks(1, torch.float16, Target())
    assert [ask for ask in without if ask.op == "excite" and tuned("dry run", *ask) is None] != []


def test_tiles_of_cuda_kernels_are_timed_into_a_table_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    path = tmp_path / "dry-run.json"
    assert run_dry(path, "--backend", "cuda") == 0
    table = cuda_tables.FAMILY.read(path)
    assert table["ops"].keys() == cuda_tables.GROWS.keys()
    blocks = table["ops"]["inverted_residual"]
    assert {} in [entry["config"] for entry in blocks]  # by invented times some blocks are Triton's
    assert run_dry(path, "--backend", "cuda", "--minutes", "0") == 0
    assert "complete" in capsys.readouterr().out  # nothing was left to time
    monkeypatch.setattr(cuda_tables, "TABLES", tmp_path)
    assert all(cuda_tables.tuned("dry run", "inverted_residual", timed["sizes"]) == timed["config"] for timed in blocks)
    assert run_dry(path, "--backend", "cuda") == 1  # among the package's own


def test_a_later_launch_is_timed_behind_what_was_found_for_the_first(tmp_path: Path) -> None:
    plan = meta_plans(torch.float16)[1]
    step = next(step for step in plan.steps if step.op == "depthwise_excite_project")
    given = functools.partial(step_arguments, step, {"x": (1, 16, 112, 112)}, plan.dtype)
    timed: list[Mapping[str, Config]] = []

    def timer(run: Any) -> float:
        timed.append(run.args[-1].overrides)
        return 1 / timed[-1].get("excite_project", {}).get("BLOCK_N", 1) + timed[-1]["depthwise_conv"]["TILE_W"]

    tune_step(Bench(META, Target(), HEADER, timer), Table(tmp_path / "t.json", HEADER), step, given, NEVER)
    found = FAMILY.read(tmp_path / "t.json")["ops"]["depthwise_conv"][0]["config"]
    assert found["TILE_W"] == 4
    seconds = [overrides for overrides in timed if "excite_project" in overrides]
    assert len(seconds) >= 3
    assert all(overrides["depthwise_conv"] == found for overrides in seconds)


def test_a_second_run_times_nothing_again(dry: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    before = dry.read_bytes()
    monkeypatch.setattr(tuning, "invented_microseconds", None)
    assert run_dry(dry) == 0
    assert dry.read_bytes() == before
    assert "complete" in capsys.readouterr().out


def test_an_interrupted_run_keeps_what_it_had(dry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, timer, timed = tmp_path / "dry-run.json", tuning.invented_microseconds, []

    def interrupted(run: trying.Run) -> float:
        timed.append(run)
        if len(timed) == 50:
            raise KeyboardInterrupt
        return timer(run)

    monkeypatch.setattr(tuning, "invented_microseconds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_dry(path)
    kept = FAMILY.read(path)["ops"]
    assert 2 <= sum(map(len, kept.values())) <= 5
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [path.name]
    assert run_dry(path) == 0
    assert {
        op: entries[: len(kept.get(op, ()))] for op, entries in FAMILY.read(path)["ops"].items() if op in kept
    } == kept
    assert FAMILY.read(path)["ops"] == FAMILY.read(dry)["ops"]


def test_out_of_time(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "dry-run.json"
    assert run_dry(path, "--minutes", "0") == 0
    assert not path.exists()
    assert "out of time" in capsys.readouterr().out


def test_a_table_of_other_versions_is_begun_anew(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "table.json"
    timed = {name: value for name, value in entry().items() if name != "sizes"}
    Table(path, HEADER).add(Ask("pointwise_conv", PRODUCT), timed)
    assert len(Table(path, HEADER)) == len(Table(path, {**HEADER, "date": "2026-02-02"})) == 1
    assert len(Table(path, {**HEADER, "torch": "2.14.0"})) == 0
    assert "begun anew" in capsys.readouterr().out
    assert Table(path, HEADER).find(Ask("pointwise_conv", PRODUCT)) == product()
    assert Table(path, HEADER).find(Ask("pointwise_conv", {**PRODUCT, "rows": 101})) is None


def test_what_is_refused(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, complaint in {
        (): "needs a CUDA device",
        ("--batches", "1", "0"): "got 0",
        ("--dry-run",): "needs --out",
        ("--dry-run", "--backend", "cuda", "--dtype", "float32"): "CUDA kernels are of float16 and bfloat16",
        ("--dry-run", "--out", str(folder / "nvidia-h100-80gb-hbm3.json")): "not in",
    }.items():
        assert main(arguments) == 1
        assert complaint in capsys.readouterr().err
    assert list(folder.iterdir()) == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(tmp_path: Path, capsys: Any) -> None:
    """The first steps; what is timed is right at whatever configuration."""
    path = tmp_path / "table.json"
    assert main(["--out", str(path), "--minutes", "0.5", "--batches", "2"]) == 0
    table = FAMILY.read(path)
    assert table["gpu"] == torch.cuda.get_device_name()
    assert table["ops"]["stem_conv"][0]["us"] > 0
    assert "computes something else" not in capsys.readouterr().out
