"""Steps of our kernels' plan by themselves, in Triton's interpreter: what the benchmarks time is what is compared."""

from __future__ import annotations

import os

import pytest
import torch

from benchmarks.contest.contenders import STEP_CONTENDERS
from benchmarks.contest.step_cases import StepCase, meta_plan
from tests.numerics import Error, allowance

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1: `make test-kernels`", allow_module_level=True)
CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_step_of_the_small(dtype: str) -> None:
    (contender,) = STEP_CONTENDERS
    for index in range(len(meta_plan("small", dtype, "triton").steps)):
        case = StepCase("small", dtype, 2, 32, "triton", index)
        right = case.right(CPU)
        ready = contender.prepare(case, CPU)
        got = ready.fetch(ready.run())
        error, allowed = Error.of(got, right.truth), allowance(right.plain, right.truth)
        assert error.within(allowed), f"{case}: {error} of {allowed}"
