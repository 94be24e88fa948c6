"""LR-ASPP beside torchvision's own."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mbv3fast
from mbv3fast import WeightsError
from mbv3fast.fold import UnsupportedError
from mbv3fast.weights import published
from tests.numerics import assert_close, assert_engine_agrees
from tests.peers import noise, trained


@torch.inference_mode()
def scores(model: nn.Module, x: Tensor) -> Tensor:
    out: Tensor = model(x)["out"]
    return out


def lraspp(torchvision: ModuleType, **options: Any) -> nn.Module:
    """torchvision's, with weights that tell every part from others."""
    build = torchvision.models.segmentation.lraspp_mobilenet_v3_large
    return trained(build(weights=None, weights_backbone=None, **options))


@pytest.mark.parametrize("size", [(97, 129), (224, 224), (32, 32)])
def test_lraspp(torchvision: ModuleType, size: tuple[int, int]) -> None:
    theirs = lraspp(torchvision)
    model = mbv3fast.lraspp_large(theirs.state_dict()).eval()
    x = noise(2, *size)
    assert_engine_agrees(model, x)
    assert_close(scores(model, x), scores(theirs, x))
    assert [tuple(step.shape) for step in model.maps(x)] == [
        (2, level.channels, *(math.ceil(side / level.stride) for side in size)) for level in model.levels
    ]


def test_lraspp_loads_both_ways(torchvision: ModuleType, tmp_path: Path) -> None:
    theirs = lraspp(torchvision, num_classes=5)
    model = mbv3fast.lraspp_large(num_classes=5).eval()
    model.load_state_dict(theirs.state_dict())
    x = noise(1, 65, 65)
    assert_close(scores(model, x), scores(theirs, x))
    theirs.load_state_dict(model.state_dict())
    torch.save(model.state_dict(), tmp_path / "model.pth")
    again = mbv3fast.lraspp_large(tmp_path / "model.pth").eval()
    assert again.config == model.config
    assert torch.equal(scores(again, x), scores(model, x))
    copied = mbv3fast.lraspp_large(copy.deepcopy(theirs).state_dict(), num_classes=3).eval()
    assert scores(copied, x).shape == (1, 3, 65, 65)
    assert torch.equal(copied.classifier.cbr[0].weight, model.classifier.cbr[0].weight)


def test_lraspp_takes_bytes_and_half_floats(torchvision: ModuleType) -> None:
    model = mbv3fast.lraspp_large(lraspp(torchvision).state_dict()).eval()
    pixels = torch.randint(0, 256, (2, 65, 97, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert_close(scores(model, pixels), scores(model, model.normalised(pixels)))
    assert_close(scores(model, pixels.permute(0, 3, 1, 2)), scores(model, pixels))
    assert_engine_agrees(copy.deepcopy(model).half(), noise(2, 65, 97).half())


def test_arguments_beside_weights_of_ours() -> None:
    state = mbv3fast.lraspp_large(num_classes=2, output_stride=8).state_dict()
    assert mbv3fast.lraspp_large(state).config.output_stride == 8
    assert mbv3fast.lraspp_large(state, output_stride=32).config.output_stride == 32
    with pytest.raises(WeightsError, match=r"reduced_tail: got True, but the weights say otherwise"):
        mbv3fast.lraspp_large(state, reduced_tail=True)
    with pytest.raises(RuntimeError, match=r"belong to output_stride=8, the model has 16"):
        mbv3fast.lraspp_large(num_classes=2).load_state_dict(state)


def test_layers_replaced_by_hand_are_described() -> None:
    model = mbv3fast.lraspp_large(num_classes=3)
    for name in ("low_classifier", "high_classifier"):
        setattr(model.classifier, name, nn.Conv2d(getattr(model.classifier, name).in_channels, 5, 1))
    model.labels = ["a", "b", "c", "d", "e"]
    again = mbv3fast.lraspp_large(model.state_dict())
    assert (again.config.num_classes, again.labels) == (5, tuple("abcde"))
    model.labels = ["a", "b"]
    assert mbv3fast.lraspp_large(model.state_dict()).labels is None, "these are another's"
    again.eval().reset_classifier(2)
    assert not again.classifier.low_classifier.training


@pytest.mark.parametrize("change", ["hook", "hook on the head", "forward", "segment"])
def test_what_is_done_to_a_model_is_no_program(change: str) -> None:
    model = mbv3fast.lraspp_large(num_classes=2).eval()
    if change.startswith("hook"):
        module = model.classifier.cbr if "head" in change else model
        module.register_forward_hook(lambda *_: None)
    else:
        setattr(model, change, getattr(model, change))
    with pytest.raises(UnsupportedError, match=r"hooks|overridden"):
        model.fused()


def test_lraspp_trains() -> None:
    model = mbv3fast.lraspp_large(num_classes=4).train()
    model(noise(2, 64, 64))["out"].square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_lraspp_on_a_classifiers_backbone(torchvision: ModuleType) -> None:
    classifier = trained(torchvision.models.mobilenet_v3_large())
    model = mbv3fast.lraspp_large(weights_backbone=classifier.state_dict(), num_classes=2).eval()
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.backbone.state_dict().values(), classifier.features.state_dict().values(), strict=True)
    )
    assert model.config.output_stride == 16
    assert scores(model, noise(1, 64, 64)).shape == (1, 2, 64, 64)
    other = mbv3fast.large(num_classes=2)
    other.preprocess = mbv3fast.Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    on_other = mbv3fast.lraspp_large(weights_backbone=other.state_dict()).preprocess
    assert (on_other.mean, on_other.std) == ((0.5,) * 3, (0.5,) * 3), "as that was trained"


def test_lraspp_as_a_program(torchvision: ModuleType) -> None:
    model = mbv3fast.lraspp_large(lraspp(torchvision).state_dict()).eval()
    x = noise(2, 65, 97)
    assert_close(scores(model.fused(), x), scores(model, x))
    exported = torch.export.export(model.fused(), (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert_close(scores(exported.module(), noise(3, 65, 97)), scores(model, noise(3, 65, 97)))


def test_lraspps_published_weights_by_name(
    torchvision: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their name, URL and preprocessing are torchvision's; here a file with other numbers stands in for them."""
    enum = torchvision.models.segmentation.LRASPP_MobileNet_V3_Large_Weights.DEFAULT
    (name,) = published.LRASPP
    assert (name, published.LRASPP[name].url) == (enum.name, enum.url)
    categories = enum.meta["categories"]
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    file = tmp_path / "checkpoints" / enum.url.rsplit("/", 1)[1]
    file.parent.mkdir()
    theirs = lraspp(torchvision)
    torch.save(theirs.state_dict(), file)
    for weights in ("DEFAULT", name, enum, file):
        model = mbv3fast.lraspp_large(weights)
        assert [label.strip("_") for label in categories] == list(model.labels or ())
        assert model.preprocess.crop is None
    image = torch.randint(0, 256, (3, 60, 91), dtype=torch.uint8)
    torch.testing.assert_close(model.transforms()(image), enum.transforms()(image), rtol=0, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "IMAGENET1K_V1"}, r"weights: got 'IMAGENET1K_V1', needs a state dict, a path, or one of DEFAULT"),
        ({"weights": {"a": torch.zeros(1)}}, r"no LR-ASPP network, classifier.low_classifier.weight is missing"),
        ({"weights": "x.pth", "weights_backbone": "y.pth"}, r"weights_backbone: needs weights=None"),
        ({"num_classes": 0}, r"num_classes: got 0, needs at least 1"),
        ({"source": "timm"}, r"source: is of weights_backbone=, which is None"),
        ({"source": "timm", "weights": "DEFAULT"}, r"source: is of weights_backbone=, which is None"),
        ({"micro_batch": 0}, r"micro_batch: got 0, needs at least 1 image"),
        ({"output_stride": 3}, r"output_stride: got 3"),
        ({"plan": "rows"}, r"plan: got 'rows'"),
    ],
)
def test_lraspp_arguments_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mbv3fast.lraspp_large(**arguments)


def test_lraspp_weights_that_do_not_fit(torchvision: ModuleType) -> None:
    state = dict(lraspp(torchvision).state_dict())
    del state["backbone.4.block.0.0.weight"]
    with pytest.raises(WeightsError, match=r"weights: backbone\.4\.block\.0\.0\.weight is missing"):
        mbv3fast.lraspp_large(state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, blocks=c.blocks[:1]), r"no LR-ASPP network: config: no map has stride 8"),
        (lambda c: replace(c, num_classes=0), r"no LR-ASPP network: num_classes: got 0, needs at least 1"),
        (lambda c: replace(c, blocks=c.blocks[:1] * 999), r"999 blocks are described, but only \d+ tensors given"),
    ],
)
def test_lraspp_weights_with_a_wrong_description(change: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mbv3fast.lraspp_large(num_classes=2)
    described = replace(model.description(), config=change(model.config))
    monkeypatch.setattr(model, "description", lambda: described)
    with pytest.raises(WeightsError, match=message):
        mbv3fast.lraspp_large(model.state_dict())
