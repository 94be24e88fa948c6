"""A model called while its caller captures a graph: launches alone, of what has run before, from weights that stay."""

from __future__ import annotations

import copy

import pytest
import torch

from mbv3fast import service
from mbv3fast.selfcheck import Verdict
from tests.served import SHAPE, TOLERANCE, assert_right, scale, subject
from tests.stand_ins import StandIn

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("gpu")


def test_what_never_ran_is_refused_within_a_capture(gpu: StandIn) -> None:
    model, x = subject()
    gpu.is_capturing = True
    message = (
        r"x: got a shape and dtype that never ran with these weights; capture after model.warmup\(\[\(2, 3, 40, 52"
    )
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match=message):
            model(x)
        assert model._built is None
        gpu.is_capturing = False
        model.warmup([SHAPE])
        gpu.is_capturing = True
        torch.testing.assert_close(model(x), model.reference_forward(x), **TOLERANCE)
        with pytest.raises(RuntimeError, match=r"capture after model.warmup\(\[\(1, 3"):
            model(x[:1])
        scale(model)
        with pytest.raises(RuntimeError, match="never ran with these weights"):
            model(x)
    assert len(gpu.captures) == 1


def test_what_pytorch_serves_may_be_captured_at_once(gpu: StandIn) -> None:
    model, x = subject(backend="auto")
    with torch.inference_mode():
        model.classifier[3].weight = torch.nn.Parameter(model.classifier[3].weight.clone())
    gpu.is_capturing = True
    assert_right(model, x)


@pytest.mark.parametrize("switch", ["precision", "shape"])
def test_another_binary_is_refused_within_a_capture(gpu: StandIn, switch: str) -> None:
    model, x = subject()
    assert_right(model, x)
    before = torch.get_float32_matmul_precision()
    gpu.is_capturing = True
    try:
        if switch == "precision":
            torch.set_float32_matmul_precision("high" if before == "highest" else "highest")
        with torch.inference_mode(), pytest.raises(RuntimeError, match="never ran"):
            model(x if switch == "precision" else x[:1])
    finally:
        torch.set_float32_matmul_precision(before)


def test_what_a_self_check_left_to_pytorch_may_be_captured(gpu: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "judge", lambda *_: Verdict("known to be slower"))
    model, x = subject(backend="auto")
    model.warmup([SHAPE])
    gpu.is_capturing = True
    assert_right(model, x)


def test_weights_that_a_callers_graph_reads_are_kept(gpu: StandIn) -> None:
    model, x = subject()
    assert_right(model, x)
    captured = model._built.result
    gpu.is_capturing = True
    for _ in range(2):
        assert_right(model, x)
    gpu.is_capturing = False
    scale(model)
    assert_right(model, x)
    assert model._built.result is not captured
    assert [kept is captured for kept in model._captured] == [True]
    assert copy.deepcopy(model)._captured == ()
