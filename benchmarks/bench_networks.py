"""Large and Small against every peer: the same weights, inputs and machine, in one run.

    pytest benchmarks/bench_networks.py --benchmark-json networks.json
    pytest benchmarks/bench_networks.py -k "large-float16-1-224"

A row is a contender in a view: "latency", from the call to its result as the host sees it; "stream", calls made one
behind another; "device warm" and "device cold", by the GPU's events, with its L2 cache as the call before left it and
with nothing of the network in it. On a CPU there is latency alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks.contest.cases import NetworkCase
from benchmarks.contest.contenders import TORCH_NETWORKS
from benchmarks.contest.peers import OTHER_NETWORKS
from benchmarks.contest.workers import View

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
FEW = (1, 8, 128)
VIEWS: tuple[View, ...] = ("latency", "stream", "device warm", "device cold")
PERCENTILES = 2000  # calls at batch 1, of which percentiles mean something


def cases(tiny: bool) -> Iterator[NetworkCase]:
    """Most wanted first."""
    for variant in ("large", "small"):
        if tiny:
            yield from (NetworkCase(variant, "float32", batch, 32) for batch in (1, 2))
        elif not torch.cuda.is_available():
            yield from (NetworkCase(variant, "float32", batch) for batch in (1, 8))
        else:
            yield from (NetworkCase(variant, dtype, batch) for dtype in ("float16", "bfloat16") for batch in BATCHES)
            yield from (NetworkCase(variant, "float32", batch) for batch in FEW)
            yield from (NetworkCase(variant, "float16", batch, size) for size in (160, 320) for batch in FEW)


def rounds(case: NetworkCase, view: View, config: pytest.Config) -> int:
    """Calls that are timed, of a stream as many times twenty."""
    if config.getoption("--tiny"):
        return 5
    if view == "latency" and case.batch == 1 and torch.cuda.is_available():
        return PERCENTILES
    return {"latency": 60, "stream": 10, "device warm": 100, "device cold": 100}[view]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    contenders = [*TORCH_NETWORKS, *OTHER_NETWORKS]
    views = VIEWS if torch.cuda.is_available() else VIEWS[:1]
    metafunc.parametrize("case", list(cases(metafunc.config.getoption("--tiny"))), ids=str)
    metafunc.parametrize("contender", contenders, ids=[contender.name.replace(" ", "-") for contender in contenders])
    metafunc.parametrize("view", views, ids=[view.replace(" ", "-") for view in views])


def bench_networks(record: Callable[[], None]) -> None:
    record()
