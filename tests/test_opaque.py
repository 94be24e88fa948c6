"""torch.compile on a GPU takes the model for one op, which its engine serves."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from mbv3fast import fast
from tests.served import TOLERANCE, scale, subject
from tests.stand_ins import StandIn

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("gpu")


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes this CPU for a GPU too."""
    monkeypatch.setattr(fast, "compiles_around", lambda _: torch.compiler.is_dynamo_compiling())


@pytest.mark.usefixtures("compiling")
def test_compiled_code_calls_the_engine_and_sees_new_weights(gpu: StandIn) -> None:
    model, x = subject()
    compiled = torch.compile(lambda x: model(x * 2) + 1, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        for edit in (None, scale, None):
            if edit:
                edit(model)
            torch.testing.assert_close(compiled(x), model.reference_forward(x * 2) + 1, **TOLERANCE)
    assert len(gpu.captures) == 2


@pytest.mark.usefixtures("compiling")
def test_compiled_copies_call_themselves() -> None:
    model, x = subject()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    scale(twin)
    with torch.inference_mode():
        for own in (model, twin):
            compiled = torch.compile(own, backend="aot_eager", fullgraph=True)
            torch.testing.assert_close(compiled(x), own.reference_forward(x), **TOLERANCE)


@pytest.mark.usefixtures("compiling")
def test_compiled_training_traces_the_modules(gpu: StandIn) -> None:
    model, x = subject()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(x).sum().backward()
    assert model.classifier[3].weight.grad is not None
    assert gpu.captures == []
