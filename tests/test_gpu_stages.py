"""The stages of a run on a GPU, which can't run here: in order, bounded, and every row in one of them."""

from __future__ import annotations

import itertools
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from _pytest.mark.expression import Expression

from benchmarks import bench_networks, bench_ops, bench_steps, gpu_run
from benchmarks.gpu.stage import ROOT, Stage
from benchmarks.gpu.stages import stages


def real_stages(tmp_path: Path) -> list[Stage]:
    return stages(tmp_path, dry=False)


def test_real_stages_are_in_order_and_bounded(tmp_path: Path) -> None:
    """What can't run here is at least well formed: names once, limits, modules that there are."""
    real, dry = real_stages(tmp_path), stages(tmp_path, dry=True)
    names = [each.name for each in real]
    assert len(set(names)) == len(names)
    assert {each.name for each in dry} >= {"environment", "build", "tests", "tune", "memcheck", "racecheck", "ncu"}
    order = [names.index(name) for name in ("environment", "build", "plans-float16", "tune", "networks-1", "steps-1")]
    assert order == sorted(order)
    assert all(0 < each.limit <= 600 for each in real)
    for each in real:
        for command in each.commands:
            if command[:2] == (sys.executable, "-m") and command[2].startswith("benchmarks"):
                assert (ROOT / Path(*command[2].split("."))).with_suffix(".py").exists()


def test_the_first_networks_are_timed_within_the_default_minutes(tmp_path: Path) -> None:
    needed = 0.0
    for each in real_stages(tmp_path):
        needed += 0 if each.lacks else each.limit
        if each.name == "networks-1":
            break
    assert needed <= 9 * 60 - gpu_run.RESERVE


def gpu_rows(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """The ids that suites have on a GPU, by suite."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ids = {}
    for suite in (bench_networks, bench_ops, bench_steps):
        name = suite.__name__.rpartition(".")[2]
        slugs = [contender.name.replace(" ", "-") for contender in suite.CONTENDERS]
        views = [view.replace(" ", "-") for view in suite.VIEWS]
        parts = itertools.product(map(str, suite.cases(False)), slugs, views)
        ids[name] = [f"{name}[{'-'.join(part)}]" for part in parts]
    return ids


def test_stages_choose_every_row_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By pytest's own reading of their expressions; no network's row is timed twice."""
    ids = gpu_rows(monkeypatch)
    seen: Counter[str] = Counter()
    for each in real_stages(tmp_path):
        (command, *_) = each.commands or ((),)
        suite = next((Path(part).stem for part in command if part.startswith("benchmarks/bench_")), "")
        if suite not in ids:
            continue
        expression = Expression.compile(command[command.index("-k") + 1])
        chosen = [row for row in ids[suite] if expression.evaluate(lambda word, row=row: word.lower() in row.lower())]
        assert chosen, each.name
        seen.update(chosen)
    assert {row for row, count in seen.items() if count > 1} == set()
    missing = {row for rows in ids.values() for row in rows} - set(seen)
    left_out = ("max-autotune", "OpenVINO", "320-mbv3fast-network")
    assert all(any(words in row for words in left_out) for row in missing), sorted(missing)[:5]


def test_the_network_in_one_launch_is_left_out_where_no_cluster_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is timed after it was found right; sanitizers look at it at any rate."""
    here = {each.name: each for each in real_stages(tmp_path) if "network" in each.name.split("-")}
    timed = {*(f"networks-{batch}-network" for batch in (1, 128, 8)), "networks-network", "network-timeline"}
    assert set(here) == {"network-plan", "network-sanitizers", *timed}
    assert {name for name, each in here.items() if each.after == "network-plan"} == timed
    assert not any(here[name].lacks for name in {"network-plan", *timed})
    assert all("network" in command for command in here["network-sanitizers"].commands)
    monkeypatch.setattr("benchmarks.gpu.network.capability", lambda: (8, 0))
    for each in real_stages(tmp_path):
        assert (each.lacks == "compute capability 8.0 has no clusters of blocks") == (each.name in here), each.name
