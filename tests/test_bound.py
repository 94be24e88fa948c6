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
        assert len(gpu.captures) == captures + 2  # of the model and of the bound one
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


def test_a_bound_model_is_called_with_all_that_a_call_does() -> None:
    model, x = subject()
    bound = model.bind(x)
    bound()
    hook = model.register_forward_hook(lambda _module, _inputs, output: output * 2)
    with torch.inference_mode():
        torch.testing.assert_close(bound(), model(x))
        hook.remove()
        torch.testing.assert_close(bound(), model(x))
        forward = model.forward
        model.forward = lambda x: forward(x).softmax(-1)
        torch.testing.assert_close(bound(), model(x))


def test_a_bound_input_may_move_but_must_fit() -> None:
    model, x = subject()
    bound = model.bind(x)
    bound()
    x.data = torch.randn(x.shape)
    with torch.inference_mode():
        torch.testing.assert_close(bound(), model.reference_forward(x), **TOLERANCE)
    x.resize_(1, *x.shape[1:])
    with pytest.raises(ValueError, match=r"out: got torch.float32 \(2, 10\) on cpu, needs torch.float32 \(1, 10\)"):
        bound()
    x.resize_(2, *x.shape[1:])
    bound()
    model.reset_classifier(1)
    with pytest.raises(ValueError, match=r"out: got .* needs torch.float32 \(2, 1\)"):
        bound()


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
