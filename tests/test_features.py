"""The feature extractor: levels, strides, timm's accessors, and hooks on inner modules of the classifier."""

from __future__ import annotations

import math
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import mbv3fast
from mbv3fast.tables import Variant
from tests.networks import calibrated_large, photographs

LEVELS: dict[Variant, list[tuple[int, int, int]]] = {  # index, channels, stride
    "large": [(1, 16, 2), (3, 24, 4), (6, 40, 8), (12, 112, 16), (16, 960, 32)],
    "small": [(0, 16, 2), (1, 16, 4), (3, 24, 8), (8, 48, 16), (12, 576, 32)],
}


def extractor(variant: Variant, **arguments: object) -> nn.Module:
    build = mbv3fast.large if variant == "large" else mbv3fast.small
    return build(features_only=True, **arguments).eval()  # type: ignore[call-overload]


@pytest.mark.parametrize("variant", LEVELS)
@pytest.mark.parametrize("size", [(64, 64), (33, 97)])
def test_levels(variant: Variant, size: tuple[int, int]) -> None:
    model = extractor(variant)
    with torch.inference_mode():
        maps = model(torch.zeros(2, 3, *size))
    expected = [(2, c, *(math.ceil(side / stride) for side in size)) for _, c, stride in LEVELS[variant]]
    assert [tuple(level.shape) for level in maps] == expected


@pytest.mark.parametrize("variant", LEVELS)
@pytest.mark.parametrize(
    ("indices", "chosen"), [((4,), [4]), ((1, 3), [1, 3]), ((3, 1), [1, 3]), ((-1, 0), [0, 4]), ((2, -3), [2])]
)
def test_out_indices(variant: Variant, indices: tuple[int, ...], chosen: list[int]) -> None:
    model = extractor(variant, out_indices=indices)
    levels = [LEVELS[variant][i] for i in chosen]
    assert model.feature_info.channels() == [channels for _, channels, _ in levels]
    assert model.feature_info.reduction() == [stride for _, _, stride in levels]
    assert model.feature_info.module_name() == [f"features.{index}" for index, _, _ in levels]
    assert len(model.features) == levels[-1][0] + 1  # nothing is computed in vain
    with torch.inference_mode():
        assert [level.shape[1] for level in model(torch.zeros(1, 3, 64, 64))] == [c for _, c, _ in levels]


@pytest.mark.parametrize("variant", LEVELS)
def test_strides_are_timms(timm: ModuleType, variant: Variant) -> None:
    theirs = timm.create_model(f"mobilenetv3_{variant}_100", features_only=True)
    assert extractor(variant).feature_info.reduction() == theirs.feature_info.reduction()


def test_levels_are_what_hooks_on_the_classifier_see() -> None:
    """Grad-CAM's way and the extractor's give the same maps."""
    classifier, x = calibrated_large(), photographs(2, seed=2)
    model = extractor("large")
    model.features.load_state_dict(classifier.features.state_dict())
    seen: list[Tensor] = []
    handles = [
        classifier.features[index].register_forward_hook(lambda _module, _inputs, output: seen.append(output.clone()))
        for index, _, _ in LEVELS["large"]
    ]
    with torch.inference_mode():
        classifier(x)
        maps = model.reference_forward(x)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(maps) == 5
    assert all(torch.equal(hooked, level) for hooked, level in zip(seen, maps, strict=True))


def test_training_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = extractor("small").train()
    sum(level.square().mean() for level in model(torch.randn(2, 3, 64, 64))).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_shortened_extractor_gives_the_levels_that_are_left() -> None:
    model = extractor("small")
    model.features = model.features[:5]
    with torch.inference_mode():
        expected = model.reference_forward(torch.ones(1, 3, 64, 64))
        maps = model(torch.ones(1, 3, 64, 64))
    assert [level.shape for level in maps] == [level.shape for level in expected]
    for level, reference in zip(maps, expected, strict=True):
        torch.testing.assert_close(level, reference)


def test_levels_may_be_chosen_anew() -> None:
    model = extractor("small")
    with torch.inference_mode():
        first = model(torch.ones(1, 3, 64, 64))
        model.levels = model.levels[1:3]
        second = model(torch.ones(1, 3, 64, 64))
    assert model.feature_info.channels() == [16, 24]
    assert [level.shape for level in second] == [level.shape for level in first[1:3]]
