"""A model bound to where its input lies and its output goes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.served import TOLERANCE, scale, subject
from tests.stand_ins import StandIn

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("gpu")


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_bound_model_reads_and_fills_where_things_lie(cuda_graphs: bool) -> None:
    model, x = subject(cuda_graphs=cuda_graphs)
    out = torch.zeros(2, 10)
    bound = model.bind(x, out)
    for edit in (None, scale, None):
        x.normal_()
        if edit:
            edit(model)
        assert bound() is out
        with torch.inference_mode():
            torch.testing.assert_close(out, model.reference_forward(x), **TOLERANCE)


def test_a_bound_model_follows_the_switch_of_tf32(gpu: StandIn) -> None:
    model, x = subject()
    bound = model.bind(x)
    bound()
    before, captures = torch.get_float32_matmul_precision(), len(gpu.captures)
    try:
        torch.set_float32_matmul_precision("high" if before == "highest" else "highest")
        for _ in range(2):
            bound()
        assert len(gpu.captures) == captures + 1
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_bound_model_within_a_capture_only_launches(gpu: StandIn) -> None:
    model, x = subject()
    bound = model.bind(x)
    bound()
    captures = len(gpu.captures)
    gpu.is_capturing = True
    x.normal_()
    bound()
    assert len(gpu.captures) == captures
    with torch.inference_mode():
        torch.testing.assert_close(bound.out, model.reference_forward(x), **TOLERANCE)


def test_a_bound_model_makes_its_output() -> None:
    model, x = subject()
    bound = model.bind(x)
    assert bound() is bound.out
    assert bound.out.shape == (2, 10)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.zeros(2, 9), r"out: got torch.float32 \(2, 9\) on cpu, needs torch.float32 \(2, 10\) on cpu"),
        (torch.zeros(2, 10).half(), r"out: got torch.float16 \(2, 10\) on cpu, needs torch.float32"),
    ],
)
def test_what_cannot_be_bound_is_refused(out: Tensor, message: str) -> None:
    model, x = subject()
    with pytest.raises(ValueError, match=message):
        model.bind(x, out)
    with pytest.raises(RuntimeError, match=r"bind: the model is in training mode; call eval\(\) first"):
        model.train().bind(x)
