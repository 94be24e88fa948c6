"""Hooks: users put them anywhere, to look inside or to change what passes. They run, and then the engine is back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mbv3fast.fast import FusedMobileNetV3
from tests.freshness import TOLERANCE, difference, images
from tests.networks import trained_small


@torch.inference_mode(False)
def model() -> FusedMobileNetV3:
    return copy.deepcopy(trained_small())


PLACES = (
    *("features", "features.0", "features.0.0", "features.0.1", "features.0.2", "features.5", "features.5.block"),
    *("features.5.block.0", "features.5.block.1.0", "features.5.block.2", "features.5.block.2.avgpool"),
    *("features.5.block.2.fc1", "features.5.block.2.scale_activation", "avgpool"),
    *("classifier", "classifier.0", "classifier.1", "classifier.2", "classifier.3"),
)


HOOKS: dict[str, Callable[[nn.Module, list[str]], Any]] = {
    "pre": lambda module, calls: module.register_forward_pre_hook(
        lambda _, inputs: (calls.append("pre"), inputs[0] * 0.5)[1:]
    ),
    "post": lambda module, calls: module.register_forward_hook(
        lambda _, __, output: (calls.append("post"), output * 1.5)[1]
    ),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", HOOKS)
@pytest.mark.parametrize("built", [False, True])
def test_hooks_are_called_and_count(place: str, kind: str, built: bool) -> None:
    """Set before the engine was built or after; once removed, the engine is back."""
    subject, calls = model(), []
    with torch.inference_mode():
        before = model()(images())
        if built:
            subject(images())
        handle = HOOKS[kind](subject.get_submodule(place), calls)
        got = subject(images())
        assert calls == [kind]
        assert difference(got, subject.reference_forward(images())) <= TOLERANCE[torch.float32]
        assert difference(got, before) > 10 * TOLERANCE[torch.float32]
        handle.remove()
        assert torch.equal(subject(images()), before)


def test_hooks_on_the_model_itself_leave_the_engine() -> None:
    subject = model()
    subject.register_forward_hook(lambda _m, _i, output: output + 1)
    with torch.inference_mode():
        assert subject.explain(images()).fused
        assert torch.equal(subject(images()), model()(images()) + 1)


def test_grad_cam() -> None:
    """Activations and their gradients at an inner layer, in eval with gradients."""
    subject = model()
    with torch.inference_mode():
        expected = subject(images())  # an engine is there
    seen: dict[str, Tensor] = {}
    layer = subject.features[11]
    layer.register_forward_hook(lambda _, __, output: seen.update(activation=output))
    layer.register_full_backward_hook(lambda _, __, gradients: seen.update(gradient=gradients[0]))
    logits = subject(images())
    logits[:, 3].sum().backward()
    assert difference(logits.detach(), expected) <= TOLERANCE[torch.float32]
    assert seen["activation"].shape == seen["gradient"].shape == (4, 96, 2, 2)
    assert seen["gradient"].abs().max() > 0


def test_backward_hooks_are_idle_without_gradients() -> None:
    subject = model()
    subject.features[3].register_full_backward_hook(lambda *_: None)
    with torch.inference_mode():
        assert subject.explain(images()).fused
