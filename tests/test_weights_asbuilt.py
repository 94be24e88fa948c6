"""A model that is no longer what its description says is not saved as if it were."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import mbv3fast
from mbv3fast import WeightsError, weights
from mbv3fast.fast import FusedMobileNetV3


def other_eps(model: FusedMobileNetV3) -> None:
    model.features[3].block[1][1].eps = 1e-2


def other_activation(model: FusedMobileNetV3) -> None:
    model.classifier[1] = nn.ReLU()


def other_stride(model: FusedMobileNetV3) -> None:
    model.features[4].block[1][0].stride = (1, 1)


def deeper_head(model: FusedMobileNetV3) -> None:
    model.classifier[3] = nn.Sequential(nn.Dropout(), nn.Linear(1024, 5))


def no_bias(model: FusedMobileNetV3) -> None:
    model.classifier[3] = nn.Linear(1024, 5, bias=False)


def no_residual(model: FusedMobileNetV3) -> None:
    model.features[3].has_residual = False


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (other_eps, r"features\.3\.block\.1\.1 is BatchNorm2d.*eps=0\.01"),
        (other_activation, r"classifier\.1 is ReLU"),
        (other_stride, r"features\.4\.block\.1\.0 is Conv2d"),
        (deeper_head, r"classifier\.3 is Sequential"),
        (no_bias, r"classifier\.3\.bias is not as it was built"),
        (no_residual, r"features\.3 is InvertedResidual"),
    ],
)
def test_an_altered_model_is_not_saved(edit: Callable[[FusedMobileNetV3], None], where: str, tmp_path: Path) -> None:
    model = mbv3fast.small(num_classes=5)
    edit(model)
    with pytest.raises(WeightsError, match=f"(?s)^save: {where}"):
        weights.save(model, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_a_new_number_of_classes_is_saved(tmp_path: Path) -> None:
    model = mbv3fast.small()
    model.classifier[3] = nn.Linear(1024, 5)
    weights.save(model, tmp_path / "model.safetensors")
    assert mbv3fast.load(tmp_path / "model.safetensors").num_classes == 5


@pytest.mark.parametrize(
    "call",
    [weights.to_torchvision, lambda model: weights.save(model, "m.safetensors"), lambda m: weights.load(m, "digits")],
)
def test_only_classifiers_are_saved_and_loaded(call: Callable[[nn.Module], object]) -> None:
    with pytest.raises(TypeError, match="got a FusedFeatureExtractor, needs a model of mbv3fast"):
        call(mbv3fast.small(features_only=True))


@pytest.mark.parametrize("options", [{"dropout": 0}, {"bn_eps": 1}, {"bn_momentum": 1}])
def test_whole_numbers_survive_a_state_dict(options: dict[str, int]) -> None:
    model = mbv3fast.small(num_classes=5, **options)
    model.load_state_dict(model.state_dict())
    assert mbv3fast.small(weights=model.state_dict()).config == model.config


def test_a_model_on_meta_takes_tensors_by_assignment() -> None:
    with torch.device("meta"):
        model = mbv3fast.small(num_classes=5)
    state = mbv3fast.small(num_classes=5).state_dict()
    with pytest.raises(RuntimeError, match=r"on meta; use assign=True"):
        model.load_state_dict(state)
    model.load_state_dict(state, assign=True)
    assert torch.equal(model.classifier[3].weight, state["classifier.3.weight"])


def test_timms_widths_under_our_names_need_a_source() -> None:
    """A plain dict has lost its description; eps and padding would be torchvision's by guess."""
    state = dict(mbv3fast.small(source="timm-tf", width_mult=0.75).state_dict())
    with pytest.raises(WeightsError, match="doesn't show whose eps and padding it has; say source="):
        mbv3fast.small(weights=state)
    assert mbv3fast.small(weights=state, source="timm-tf").config.tf_same_padding
