"""Single fused ops at every shape of both tables, against cuDNN through PyTorch and torch.compile of the same formula.

    pytest benchmarks/bench_ops.py -k "depthwise_conv-float16-1-"

Each is timed in a CUDA graph, where the host has no part, with a warm and a cold L2 cache. Without a GPU there is
nothing to time, but for --tiny.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks.contest.contenders import OP_CONTENDERS
from benchmarks.contest.step_cases import OpCase, op_cases
from benchmarks.contest.workers import View

CONTENDERS = OP_CONTENDERS
VIEWS: tuple[View, ...] = ("device warm", "device cold")
BATCHES = (1, 128, 8)


def cases(tiny: bool) -> Iterator[OpCase]:
    if tiny:
        yield from {case.op: case for case in op_cases("float32", (1,), 32)}.values()  # one of each
    elif torch.cuda.is_available():
        yield from op_cases("float16", BATCHES)


def rounds(_case: OpCase, _view: View, config: pytest.Config) -> int:
    return 5 if config.getoption("--tiny") else 50


def bench_ops(record: Callable[[], None]) -> None:
    record()
