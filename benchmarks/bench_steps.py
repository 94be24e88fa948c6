"""Every step of our plan by itself, beside the floor that the cost model gives it.

pytest benchmarks/bench_steps.py -k "large-float16-1-"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from benchmarks.contest.contenders import STEP_CONTENDERS
from benchmarks.contest.step_cases import StepCase, meta_plan
from benchmarks.contest.workers import View

CONTENDERS = STEP_CONTENDERS
VIEWS: tuple[View, ...] = ("device warm", "device cold")
BATCHES = (1, 128, 8)


def cases(tiny: bool) -> Iterator[StepCase]:
    gpu = torch.cuda.is_available()
    dtype, backend = ("float16", "triton") if gpu else ("float32", "torch")
    batches = (1, 2) if tiny else BATCHES if gpu else (1,)
    for batch in batches:
        for variant in ("small",) if tiny else ("large", "small"):
            for index in range(len(meta_plan(variant, dtype, backend).steps)):
                yield StepCase(variant, dtype, batch, 32 if tiny else 224, backend, index)


def rounds(_case: StepCase, _view: View, config: pytest.Config) -> int:
    return 5 if config.getoption("--tiny") else 50


def bench_steps(record: Callable[[], None]) -> None:
    record()
