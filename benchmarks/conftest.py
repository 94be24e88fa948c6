"""What the suites share: contenders side by side, their times as pytest-benchmark's rows, the machine in its files."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contest.cases import Case
from benchmarks.contest.contenders import Contender
from benchmarks.contest.side_by_side import Limits, SideBySide, Timed
from benchmarks.contest.workers import View
from benchmarks.machine import DEVICE
from benchmarks.machine import machine_info as this_machine
from benchmarks.names import OURS
from mbv3fast.cost import Floors
from mbv3fast.records import sources

ENOUGH = 1000  # calls, of which ten are slower than their p99
REFUSED: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()
MEASURED: pytest.StashKey[dict[Any, dict[str, Timed]]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mbv3fast")
    group.addoption("--tiny", action="store_true", help="Tiny inputs and few calls: shows that it runs, not how fast.")
    group.addoption("--limit", type=float, default=300.0, help="Seconds that a contender may take to be ready.")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("these suites need pytest-benchmark: pip install pytest-benchmark")
    config.stash[REFUSED], config.stash[MEASURED] = [], {}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A suite that records names its CASES, whether tiny, its CONTENDERS and the VIEWS that it has on a GPU."""
    if "record" in metafunc.fixturenames:
        suite = metafunc.module
        views = suite.VIEWS if DEVICE == "cuda" else ("latency",)
        metafunc.parametrize("case", list(suite.cases(metafunc.config.getoption("--tiny"))), ids=str)
        metafunc.parametrize("contender", suite.CONTENDERS, ids=[_slug(c.name) for c in suite.CONTENDERS])
        metafunc.parametrize("view", views, ids=[_slug(view) for view in views])


def _slug(name: str) -> str:
    return name.replace(" ", "-")


class Recording:
    """A clock that was read before: each `advance` lets pass what one call took."""

    __name__ = "recorded"  # which pytest-benchmark asks of a timer

    def __init__(self) -> None:
        self._now = 0.0
        self._seconds: Iterator[float] = iter(())

    def __call__(self) -> float:
        return self._now

    def load(self, seconds: list[float]) -> None:
        self._seconds = iter(seconds)

    def advance(self) -> None:
        self._now += next(self._seconds, 0.0)


@pytest.fixture
def recording(request: pytest.FixtureRequest) -> Recording:
    """The clock of the test's own `benchmark`, which must come after it."""
    clock = Recording()
    request.node.add_marker(pytest.mark.benchmark(timer=clock))
    return clock


@pytest.fixture(scope="session")
def side_by_side(request: pytest.FixtureRequest) -> Iterator[SideBySide]:
    contest = SideBySide(DEVICE, Limits(prepare=request.config.getoption("--limit")))
    yield contest
    contest.close()


@pytest.fixture
def timed(request: pytest.FixtureRequest, side_by_side: SideBySide, case: Case, contender: Contender) -> Timed:
    """What was measured of a contender. The first test of a case measures all that were selected of it."""
    measured = request.config.stash[MEASURED]
    if case not in measured:
        chosen = [getattr(item, "callspec", None) for item in request.session.items]
        rows = [spec.params for spec in chosen if spec is not None and spec.params.get("case") == case]
        contenders = list(dict.fromkeys(row["contender"] for row in rows))
        views = {row["view"]: request.module.rounds(case, row["view"], request.config) for row in rows}
        measured[case] = side_by_side.measure(case, contenders, views)
    return measured[case][contender.name]


@pytest.fixture
def record(
    request: pytest.FixtureRequest,
    recording: Recording,
    benchmark: Any,
    timed: Timed,
    case: Case,
    contender: Contender,
    view: View,
) -> Callable[[], None]:
    """Makes a row of what was timed; skips with the reason where nothing was, fails where that is our fault."""

    def make() -> None:
        known = {**_known(request, case, contender, view), **_facts(case, view)}
        seconds = timed.seconds.get(view, [])
        if timed.refused or not seconds:
            reason = timed.refused or f"has no view {view!r}"
            request.config.stash[REFUSED].append({**known, "reason": reason})
            ours = contender.name.startswith(OURS) and not contender.refuses(case.dtype, DEVICE)
            (pytest.fail if ours else pytest.skip)(f"{contender.name}: {reason}")
        measured: dict[str, Any] = {"p50": statistics.median(seconds), "p99": _p99(seconds), "sources": sources()[:16]}
        measured |= {"prepared_s": timed.prepared_s, "error": timed.errors()}
        benchmark.group = f"{case} {view}"
        benchmark.params = {"case": str(case), "contender": contender.name, "view": view}  # which JSON can hold
        benchmark.extra_info |= known | measured
        recording.load(seconds)
        benchmark.pedantic(recording.advance, rounds=len(seconds))

    return make


def _p99(seconds: list[float]) -> float | None:
    """Of calls enough for it to mean something."""
    return statistics.quantiles(seconds, n=100, method="inclusive")[98] if len(seconds) >= ENOUGH else None


def _known(request: pytest.FixtureRequest, case: Case, contender: Contender, view: View) -> dict[str, Any]:
    """What tells a row from others."""
    kind, _, cache = view.partition(" ")
    return {
        "suite": request.module.__name__.rpartition("bench_")[2],
        "device": "gpu" if DEVICE == "cuda" else "cpu",
        "contender": contender.name,
        "batch": case.batch,
        "dtype": case.dtype,
        "view": kind,
        "cache": cache or None,
    }


def _facts(case: Case, view: View) -> dict[str, Any]:
    """What the case says of itself; of its floors, where it has any, that of the view."""
    facts = case.facts()
    floors: Floors | None = facts.pop("floors", None)
    if floors is None:
        return facts
    if view == "device cold":
        return {**facts, "floor_s": floors.cold_floor_seconds, "bound": floors.cold_bound}
    return {**facts, "floor_s": floors.floor_seconds, "bound": floors.bound}


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What times depend on, and no more: not the machine's name."""
    cpu = {name: machine_info["cpu"][name] for name in ("brand_raw", "arch", "count") if name in machine_info["cpu"]}
    system = machine_info["system"]
    machine_info.clear()
    machine_info |= {"system": system, "cpu": cpu, **this_machine(), "dry_run": config.getoption("--tiny")}


@pytest.hookimpl(optionalhook=True)
def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    del benchmarks
    output_json["refused"] = config.stash[REFUSED]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Reasons alone, where nothing was timed, of which pytest-benchmark writes no file."""
    config = session.config
    path = config.getoption("benchmark_json", None)
    if path and config.stash[REFUSED] and not config._benchmarksession.benchmarks:  # type: ignore[attr-defined]
        whole = config.hook.pytest_benchmark_generate_json(
            config=config,
            benchmarks=[],
            include_data=False,
            machine_info=config._benchmarksession.get_machine_info(),  # type: ignore[attr-defined]
            commit_info=config.hook.pytest_benchmark_generate_commit_info(config=config),
        )
        whole["refused"] = config.stash[REFUSED]
        file = path if isinstance(path, Path) else path.name  # before 5.3 pytest-benchmark had it opened
        Path(file).write_text(json.dumps(whole), encoding="utf-8")
