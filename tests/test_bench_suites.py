"""The suites as pytest-benchmark's users know them: JSON, comparison, histograms; refusals in words."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.conftest import Recording, _p99
from benchmarks.gpu.stage import ROOT
from tests.once import made_once

CASE = "pointwise_conv-float32-1-"


def bench(*arguments: object, suite: Path = Path("benchmarks/bench_ops.py")) -> subprocess.CompletedProcess[str]:
    """In a pytest that knows nothing of this one, whose workers would keep it from timing."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", str(suite), "-q", "--tiny", "-p", "no:cacheprovider"]
    return subprocess.run([*command, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, env=env)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a run of one op, with a histogram beside it."""

    def make(folder: Path) -> None:
        chosen = f"{CASE} and (mbv3fast or PyTorch)"
        named = ("--benchmark-json", folder / "ops.json", "--benchmark-histogram", folder / "times")
        ran = bench("-k", chosen, *named, "--benchmark-save-data")
        assert ran.returncode == 0, ran.stdout

    return made_once(tmp_path_factory, "results", make) / "ops.json"


def test_rows_have_all_that_reports_need(results: Path) -> None:
    whole = json.loads(results.read_text())
    assert "node" not in whole["machine_info"], "a machine's name is nobody's business"
    assert whole["machine_info"]["dry_run"] is True
    assert whole["machine_info"]["versions"]["torch"]
    rows: dict[str, Any] = {row["extra_info"]["contender"]: row for row in whole["benchmarks"]}
    assert rows.keys() == {"mbv3fast", "PyTorch"}
    for row in rows.values():
        facts, stats = row["extra_info"], row["stats"]
        assert (facts["suite"], facts["op"], facts["batch"], facts["dtype"]) == ("ops", "pointwise_conv", 1, "float32")
        assert stats["rounds"] == len(stats["data"]) == 5
        assert 0 < stats["min"] <= facts["p50"] <= stats["max"]
        assert facts["p99"] is None, "five calls have none"
        assert facts["bytes"] > 0 < facts["macs"]
        assert facts["floor_s"] > 0
        assert facts["error"]["rms"] <= 2 * facts["error"]["torch_rms"] + 1e-6
        assert facts["prepared_s"] > 0
    assert whole["refused"] == []


def test_histograms(results: Path) -> None:
    assert [path.suffix for path in results.parent.glob("times*")] == [".svg"]


def test_comparisons(results: Path, tmp_path: Path) -> None:
    again = (
        "--benchmark-compare",
        results,
        "--benchmark-compare-fail",
        "median:99999%",
        "--benchmark-storage",
        tmp_path,
    )
    ran = bench("-k", f"{CASE} and PyTorch", *again)
    assert ran.returncode == 0, ran.stdout
    assert "(NOW)" in ran.stdout


def test_a_clock_passes_what_was_recorded() -> None:
    clock = Recording()
    clock.load([0.25, 0.5])
    readings = [clock()]
    for _ in range(2):
        clock.advance()
        readings.append(clock())
    assert readings == [0, 0.25, 0.75]


def test_p99_is_of_many_calls_and_was_measured() -> None:
    seconds = [i / 1000 for i in range(1, 1001)]
    assert _p99(seconds[:999]) is None
    assert 0.989 < (_p99(seconds) or 0) <= 0.991
    assert _p99([1.0] * 999 + [2.0]) <= 2.0  # type: ignore[operator]


REFUSING = """
import pytest
from benchmarks.contest.contenders import Contender
from tests import contenders

OURS = Contender("mbv3fast", contenders.anywhere, contenders._wrong)

def rounds(*_):
    return 5

CONTENDERS = (contenders.RIGHT, contenders.WRONG, contenders.LACKS, OURS)
VIEWS = ("device warm",)

def cases(tiny):
    return [contenders.CASE]

def bench_refusing(record):
    record()
"""


def test_ours_fails_and_others_are_skipped_where_they_compute_something_else(tmp_path: Path) -> None:
    suite, json_path = tmp_path / "bench_refusing.py", tmp_path / "refused.json"
    suite.write_text(REFUSING)
    known = ("-p", "benchmarks.conftest", "-c", ROOT / "pyproject.toml")
    ran = bench(*known, "--benchmark-json", json_path, suite=suite)
    assert "1 failed, 1 passed, 2 skipped" in ran.stdout, ran.stdout
    whole = json.loads(json_path.read_text())
    assert [row["extra_info"]["contender"] for row in whole["benchmarks"]] == ["right"]
    reasons = {no["contender"]: no["reason"] for no in whole["refused"]}
    assert reasons.pop("lacks") == "isn't installed"
    assert all(reason.startswith("errs by") for reason in reasons.values())
    assert reasons.keys() == {"wrong", "mbv3fast"}


def test_reasons_are_kept_where_nothing_was_timed(tmp_path: Path) -> None:
    suite, json_path = tmp_path / "bench_refusing.py", tmp_path / "refused.json"
    suite.write_text(REFUSING)
    known = ("-p", "benchmarks.conftest", "-c", ROOT / "pyproject.toml", "-k", "lacks")
    ran = bench(*known, "--benchmark-json", json_path, suite=suite)
    assert ran.returncode == 0, ran.stdout
    whole = json.loads(json_path.read_text())
    assert whole["benchmarks"] == []
    assert [no["reason"] for no in whole["refused"]] == ["isn't installed"]
    assert whole["machine_info"]["cores"]
