"""Never a stale answer: whatever is done to a model between two forwards, the second one counts it."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch

import mbv3fast
from mbv3fast.fast import FusedMobileNetV3
from tests.edits import CONV, EDITS
from tests.freshness import TOLERANCE, answer, assert_fresh, difference, images, reference, subject


@pytest.mark.parametrize("edit", EDITS)
def test_no_edit_is_missed(edit: str, served_on: str) -> None:
    model = subject()
    before = answer(model)
    with torch.inference_mode():
        assert model.explain(images()).backend == {"CPU": "torch", "GPU": "triton"}[served_on]
    assert difference(before, reference(model)) <= TOLERANCE[torch.float32]
    EDITS[edit](model)
    assert_fresh(model, before)


@pytest.mark.parametrize(
    "edit",
    ["data assigned at the same address", f"{CONV}.weight in place", "half and back"],
)
@pytest.mark.parametrize("kind", ["bfloat16", "features"])
@pytest.mark.usefixtures("served_on")
def test_nor_in_other_kinds_of_model(edit: str, kind: str) -> None:
    """Their engines keep none of the model's own tensors alive."""
    model: Any = subject()
    if kind == "bfloat16":
        model.to(torch.bfloat16)
    else:
        features, model = model.features, mbv3fast.small(features_only=True, out_indices=(4,)).eval()
        model.features = features
    before = answer(model)
    EDITS[edit](model)
    assert_fresh(model, before)


def test_writes_past_pytorchs_count_to_a_whole_tensor_are_seen() -> None:
    model = subject()
    before = answer(model)
    model.features[12][0].weight.data.mul_(1.5)
    assert_fresh(model, before)
    before = answer(model)
    model.features[12][0].weight.detach().numpy()[:] *= 1.5
    assert_fresh(model, before)


@pytest.mark.usefixtures("served_on")
def test_writes_past_pytorchs_count_to_a_part_show_after_repack() -> None:
    model = subject()
    before = answer(model)
    model.features[12][0].weight.data[:9].mul_(3)
    model.repack()
    assert_fresh(model, before)


@pytest.mark.usefixtures("served_on")
def test_repack_during_another_threads_build_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    model = subject()
    before = answer(model)
    model.repack()
    folding, edited = threading.Event(), threading.Event()
    lower = type(model)._lower

    def slow_lower(self: FusedMobileNetV3, lowering: Any) -> Any:
        lowered = lower(self, lowering)
        folding.set()
        edited.wait(10)
        return lowered

    monkeypatch.setattr(type(model), "_lower", slow_lower)
    builder = threading.Thread(target=answer, args=(model,))
    builder.start()
    assert folding.wait(10)
    model.features[12][0].weight.data[:9].mul_(3)
    repacker = threading.Thread(target=model.repack)
    repacker.start()
    edited.set()
    builder.join()
    repacker.join()
    monkeypatch.undo()
    assert_fresh(model, before)
