"""When PyTorch runs the modules instead of the engine: the same answers, the right reason, said once."""

from __future__ import annotations

import contextlib
import copy
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

import mbv3fast
from mbv3fast import serving
from mbv3fast.fast import FusedMobileNetV3
from tests.freshness import TOLERANCE, difference
from tests.networks import digit_tiles, trained_small


@torch.inference_mode(False)
def model() -> FusedMobileNetV3:
    return copy.deepcopy(trained_small())


def images() -> Tensor:
    return digit_tiles()[:4]


@contextlib.contextmanager
def global_hook(register: Callable[..., Any]) -> Iterator[None]:
    handle = register(lambda *_: None)
    try:
        yield
    finally:
        handle.remove()


class Scaled(FusedMobileNetV3):
    """A user's own subclass."""

    def forward_features(self, x: Tensor) -> Tensor:
        return 2 * super().forward_features(x)


def subclassed() -> FusedMobileNetV3:
    other = Scaled(model().config).eval()
    other.load_state_dict(model().state_dict())
    return other


def edited(edit: Callable[[FusedMobileNetV3], Any]) -> Callable[[], FusedMobileNetV3]:
    def build() -> FusedMobileNetV3:
        subject = model()
        edit(subject)
        return subject

    return build


def born_in_inference_mode() -> FusedMobileNetV3:
    with torch.inference_mode():
        return mbv3fast.small(num_classes=10).eval()


def frozen_in_training(subject: FusedMobileNetV3) -> None:
    """The model says training, its parts say eval, as in fine-tuning with frozen statistics."""
    subject.train()
    subject.features.eval()
    subject.classifier.eval()


# Each a model, what else holds while it is called, the input and the reason.
CASES: dict[str, tuple[Callable[[], FusedMobileNetV3], Callable[[], AbstractContextManager], Any, str]] = {
    "gradients": (model, torch.enable_grad, images, "gradients are enabled: call the model under torch.inference_mode"),
    "training": (edited(frozen_in_training), nullcontext, images, "the model is in training mode"),
    "autocast": (model, lambda: torch.autocast("cpu", torch.bfloat16), images, "autocast is enabled"),
    "float64": (edited(lambda m: m.double()), nullcontext, lambda: images().double(), "torch.float64 is not served"),
    "parameter": (
        model,
        nullcontext,
        lambda: nn.Parameter(images()),
        "the input is traced, compiled or no plain tensor",
    ),
    "forward hook": (model, lambda: global_hook(register_module_forward_hook), images, "hooks for all modules"),
    "pre-hook": (model, lambda: global_hook(register_module_forward_pre_hook), images, "hooks for all modules"),
    "subclass": (subclassed, nullcontext, images, "the model's own forward methods are overridden"),
    "method": (
        edited(lambda m: setattr(m, "forward_head", lambda x: x.amax((2, 3)))),
        *(nullcontext, images, "the model's own forward methods are overridden"),
    ),
    "inference tensors": (born_in_inference_mode, nullcontext, images, "features.0.0.weight was made under inference"),
    "two dtypes": (
        edited(lambda m: [norm.float() for norm in m.half().modules() if isinstance(norm, nn.BatchNorm2d)]),
        *(nullcontext, lambda: images().half(), "parameters have several dtypes: torch.float16, torch.float32"),
    ),
    "replica": (
        edited(lambda m: setattr(m, "_is_replica", True)),
        *(nullcontext, images, "a replica of nn.DataParallel"),
    ),
    "unknown module": (
        edited(lambda m: m.features.insert(3, nn.Identity())),
        *(nullcontext, images, "features.3 is a Identity, needs InvertedResidual"),
    ),
}


@pytest.fixture
def spoken(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """What the library has logged since the test began."""
    serving._say_once.cache_clear()
    caplog.set_level(logging.INFO, logger="mbv3fast")
    return lambda: [record.getMessage() for record in caplog.records if record.name == "mbv3fast"]


@pytest.mark.parametrize("case", CASES)
def test_pytorch_answers_and_the_reason_is_given(case: str, spoken: Callable[[], list[str]]) -> None:
    build, surroundings, make_input, reason = CASES[case]
    subject, x = build(), make_input()
    with torch.no_grad(), surroundings():
        decision = subject.explain(x)
        answers = [subject(x) for _ in range(3)]
        expected = subject.reference_forward(x)
    assert (decision.fused, reason in decision.reason) == (False, True), decision
    assert all(torch.equal(answer, expected) for answer in answers)
    assert answers[0].dtype == expected.dtype
    silent = case in ("training", "parameter")  # nobody expects an engine there
    assert spoken() == ([] if silent else [f"PyTorch runs this model's modules: {decision.reason}"])


def test_the_engine_serves_in_silence(spoken: Callable[[], list[str]]) -> None:
    with torch.inference_mode():
        subject = model()
        decision = subject.explain(images())
        subject(images())
    assert decision.fused
    assert decision.reason == "CPU: batch norm folded, channels_last, run in float32 by PyTorch's convolutions"
    assert spoken() == []


def test_an_unknown_classifier_is_left_to_pytorch_alone(spoken: Callable[[], list[str]]) -> None:
    subject = model()
    subject.classifier[1] = nn.Tanh()
    with torch.inference_mode():
        decision = subject.explain(images())
        answers = [subject(images()) for _ in range(2)]
        expected = subject.reference_forward(images())
    assert decision.fused
    assert decision.reason.endswith(
        "; the classifier is left to PyTorch: classifier.1 is a Tanh, needs ReLU or Hardswish"
    )
    assert difference(answers[1], expected) <= TOLERANCE[torch.float32]
    assert spoken() == ["PyTorch runs this model's classifier: classifier.1 is a Tanh, needs ReLU or Hardswish"]


def test_an_error_of_pytorchs_is_not_papered_over() -> None:
    """A float32 layer on a float16 network: PyTorch refuses, by module and with its backbone fused."""
    subject = model().half()
    subject.classifier[3] = nn.Linear(1024, 10)
    with torch.inference_mode():
        with pytest.raises(RuntimeError, match="must have the same dtype"):
            subject.reference_forward(images().half())
        with pytest.raises(RuntimeError, match="must have the same dtype"):
            subject(images().half())


def test_gradients_of_the_input() -> None:
    subject = model()
    with torch.inference_mode():
        subject(images())  # an engine is there
    gradients = []
    for forward in (subject, subject.reference_forward):
        x = images().clone().requires_grad_()
        forward(x)[:, 3].sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)
    assert gradients[0].abs().max() > 0


def test_an_input_that_requires_grad_is_served_under_no_grad() -> None:
    subject, x = model(), images().clone().requires_grad_()
    with torch.no_grad():
        assert subject.explain(x).fused
        out = subject(x)
    assert not out.requires_grad
    assert difference(out, subject.reference_forward(x).detach()) <= TOLERANCE[torch.float32]


def test_a_model_on_meta_says_so() -> None:
    subject, x = model().to("meta"), images().to("meta")
    with torch.inference_mode():
        decision = subject.explain(x)
    assert not decision.fused
    assert "no kernels for meta" in decision.reason


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_scripted_part_is_left_to_pytorch() -> None:
    model = mbv3fast.small().eval()
    model.classifier = torch.jit.script(model.classifier)
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model(x), model.reference_forward(x))
        assert model.explain(x).reason == "classifier is a RecursiveScriptModule"


def test_feature_maps_may_be_written_to_later() -> None:
    """As by a trainable neck on a frozen backbone."""
    backbone = mbv3fast.small(features_only=True).eval()
    with torch.no_grad():
        assert backbone.explain(images()).fused
        maps = backbone(images())
    weight = nn.Parameter(torch.ones(1))
    for level in maps:
        level.mul_(weight)
    sum(level.sum() for level in maps).backward()
    assert weight.grad is not None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_weights_are_computed_with_in_float32(dtype: torch.dtype) -> None:
    subject = model().to(dtype)
    with torch.inference_mode():
        out = subject(images().to(dtype))
    assert out.dtype == dtype
    wide = model().to(dtype).float().reference_forward(images().to(dtype).float())
    assert difference(out.float(), wide) <= torch.finfo(dtype).eps
