"""Large and Small against every peer: the same weights, inputs and machine, in one run.

    pytest benchmarks/bench_networks.py --benchmark-json networks.json
    pytest benchmarks/bench_networks.py -k "large-float16-1-224"

A row is a contender in a view: "latency", from the call to its result as the host sees it; "stream", calls made one
behind another; "device warm" and "device cold", by the GPU's events, with its L2 cache as the call before left it and
with nothing of the network in it. On a CPU there is latency alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks.contest.cases import NetworkCase
from benchmarks.contest.contenders import TORCH_NETWORKS
from benchmarks.contest.peers import OTHER_NETWORKS
from benchmarks.contest.workers import View

CONTENDERS = (*TORCH_NETWORKS, *OTHER_NETWORKS)
VARIANTS = ("large", "small")
FEW = (1, 128, 8)
BATCHES = (*FEW, 2, 4, 16, 32, 64, 256, 512)
VIEWS: tuple[View, ...] = ("latency", "stream", "device warm", "device cold")
PERCENTILES = 2000  # calls at batch 1, of which percentiles mean something


def cases(tiny: bool) -> Iterator[NetworkCase]:
    """Most wanted first."""
    if tiny:
        yield from (NetworkCase(variant, "float32", batch, 32) for batch in (1, 2) for variant in VARIANTS)
    elif not torch.cuda.is_available():
        yield from (NetworkCase(variant, "float32", batch) for batch in (1, 8) for variant in VARIANTS)
    else:
        for dtype in ("float16", "bfloat16"):
            yield from (NetworkCase(variant, dtype, batch) for batch in BATCHES for variant in VARIANTS)
        yield from (NetworkCase(variant, "float32", batch) for batch in FEW for variant in VARIANTS)
        sizes = itertools.product((160, 320), FEW, VARIANTS)
        yield from (NetworkCase(variant, "float16", batch, size) for size, batch, variant in sizes)


def rounds(case: NetworkCase, view: View, config: pytest.Config) -> int:
    """Calls that are timed, of a stream as many times twenty."""
    if config.getoption("--tiny"):
        return 5
    if case.batch == 1 and torch.cuda.is_available() and view in ("latency", "device warm"):
        return PERCENTILES
    return {"latency": 60, "stream": 10, "device warm": 100, "device cold": 100}[view]


def bench_networks(record: Callable[[], None]) -> None:
    record()
