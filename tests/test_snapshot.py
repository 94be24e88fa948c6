"""What a snapshot watches; and what stays the same is folded once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import mbv3fast
from mbv3fast import freshness
from mbv3fast.fast import FusedMobileNetV3
from tests.freshness import answer, assert_fresh, subject

Edit = Callable[[FusedMobileNetV3], Any]


@pytest.mark.parametrize("attribute", sorted(freshness._WATCHED))
def test_every_watched_attribute_matters(attribute: str) -> None:
    model = subject()
    snapshot = freshness.Snapshot(model, (model.features,))
    assert snapshot.holds()
    setattr(next(m for m in model.features.modules() if attribute in vars(m)), attribute, "another value")
    assert not snapshot.holds()


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_a_tensor_in_anothers_place_is_seen_even_where_it_is_equal(kind: str) -> None:
    model = mbv3fast.small(num_classes=1).eval()
    snapshot = freshness.Snapshot(model, (model.classifier,))
    assert snapshot.holds()
    setattr(model.classifier[3], kind, nn.Parameter(getattr(model.classifier[3], kind).detach().clone()))
    assert not snapshot.holds()


def test_a_list_changed_where_it_is_is_seen() -> None:
    model = subject()
    conv = model.features[4].depthwise[0]
    conv.padding = list(conv.padding)
    snapshot = freshness.Snapshot(model, (model.features,))
    assert snapshot.holds()
    conv.padding[0] = 0
    assert not snapshot.holds()


def test_live_reflection_padding_is_seen() -> None:
    model = subject()
    before = answer(model)
    conv = model.features[4].depthwise[0]
    conv.padding_mode, conv._reversed_padding_repeated_twice = "reflect", [2, 2, 2, 2]
    assert_fresh(model, before)


@pytest.mark.parametrize(
    ("edit", "folds"),
    [
        (lambda model: model.eval(), 1),
        (lambda model: setattr(model.classifier[1], "forward", nn.Hardswish().forward), 1),
        (lambda model: setattr(model.features[0], "forward", lambda x: x), 1),
        (lambda model: model.features.insert(3, nn.Identity()), 1),
        (lambda model: model.train(), 0),
    ],
)
def test_what_stays_the_same_is_folded_once(edit: Edit, folds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model = subject()
    edit(model)
    counted = []
    lower = type(model)._lower
    monkeypatch.setattr(type(model), "_lower", lambda *given: (counted.append(1), lower(*given))[1])
    with torch.inference_mode():
        for _ in range(3):
            model.explain(torch.zeros(1, 3, 64, 64))
    assert len(counted) == folds
