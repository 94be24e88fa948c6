"""What the suites share: contenders side by side, their times as pytest-benchmark's rows, the machine in its files."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks.contest.cases import Case
from benchmarks.contest.contenders import Contender
from benchmarks.contest.side_by_side import Limits, SideBySide, Timed
from benchmarks.contest.workers import View
from benchmarks.names import OURS

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
PACKAGES = ("torch", "triton", "torchvision", "timm", "jax", "onnxruntime", "openvino", "torch_tensorrt")
REFUSED: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()
MEASURED: pytest.StashKey[dict[Any, dict[str, Timed]]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mbv3fast")
    group.addoption("--tiny", action="store_true", help="Tiny inputs and few calls: shows that it runs, not how fast.")
    group.addoption("--limit", type=float, default=300.0, help="Seconds that a contender may take to be ready.")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[REFUSED], config.stash[MEASURED] = [], {}


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
        known = {**_known(request, case, contender, view), **case.facts()}
        seconds = timed.seconds.get(view, [])
        if timed.refused or not seconds:
            reason = timed.refused or f"has no view {view!r}"
            request.config.stash[REFUSED].append({**known, "reason": reason})
            ours = contender.name.startswith(OURS) and not contender.lacks(DEVICE)
            (pytest.fail if ours else pytest.skip)(f"{contender.name}: {reason}")
        p50, p99 = statistics.median(seconds), statistics.quantiles(seconds, n=100)[98]
        measured = {"p50": p50, "p99": p99, "prepared_s": timed.prepared_s, "error": timed.errors()}
        benchmark.group = f"{case} {view}"
        benchmark.params = {"case": str(case), "contender": contender.name, "view": view}  # which JSON can hold
        benchmark.extra_info |= known | measured
        recording.load(seconds)
        benchmark.pedantic(recording.advance, rounds=len(seconds))

    return make


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


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """What times depend on, and no more: not the machine's name."""
    cpu = {name: machine_info["cpu"][name] for name in ("brand_raw", "arch", "count") if name in machine_info["cpu"]}
    system = machine_info["system"]
    machine_info.clear()
    machine_info |= {
        "system": system,
        "cpu": cpu,
        "gpu": _gpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "versions": {"python": platform.python_version(), **dict(_versions())},
        "dry_run": config.getoption("--tiny"),
    }


def pytest_benchmark_update_json(config: pytest.Config, benchmarks: Any, output_json: dict[str, Any]) -> None:
    del benchmarks
    output_json["refused"] = config.stash[REFUSED]


def _versions() -> Iterator[tuple[str, str]]:
    from mbv3fast import __version__

    yield "mbv3fast", __version__
    for package in PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue


def _gpu() -> dict[str, str] | None:
    if DEVICE == "cpu":
        return None
    properties = torch.cuda.get_device_properties(0)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    capability = f"{properties.major}.{properties.minor}"
    return {"name": properties.name, "driver": driver or "unknown", "capability": capability}
