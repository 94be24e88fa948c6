"""`accelerate`: torchvision's and timm's own models become ours, whatever was done to them, or are refused by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mbv3fast
from mbv3fast import AccelerationError, accelerate, acceleration
from mbv3fast.fast import FusedMobileNetV3
from tests.networks import calibrate, photographs, randomise
from tests.numerics import assert_close

TORCHVISION: dict[str, Callable[[ModuleType], nn.Module]] = {
    "large": lambda tv: tv.models.mobilenet_v3_large(),
    "small": lambda tv: tv.models.mobilenet_v3_small(),
    "narrow": lambda tv: tv.models.mobilenet_v3_small(width_mult=0.6, num_classes=7),
    "reduced tail": lambda tv: tv.models.mobilenet_v3_large(reduced_tail=True),
    "dilated": lambda tv: tv.models.mobilenet_v3_large(dilated=True),
}
TIMM = [
    "mobilenetv3_small_100",
    "mobilenetv3_large_150d",
    "mobilenetv3_rw",
    "tf_mobilenetv3_small_075",
    "tf_mobilenetv3_large_minimal_100",
]


def trained(model: nn.Module) -> nn.Module:
    """With weights and statistics that tell every part from others, in eval."""
    torch.manual_seed(0)
    randomise(model)
    calibrate(model, photographs(4, 96, seed=1))
    return model.eval()


@torch.inference_mode()
def agree(ours: FusedMobileNetV3, model: nn.Module, x: Tensor) -> None:
    assert ours.explain(x).fused
    assert_close(ours(x), model(x))


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions(torchvision: ModuleType, name: str) -> None:
    model = trained(TORCHVISION[name](torchvision))
    agree(accelerate(model), model, photographs(2, 80))


@pytest.mark.parametrize("name", ["large", "small", "narrow", "reduced tail", "dilated"])
def test_it_is_the_network_that_its_weights_are_read_as(torchvision: ModuleType, name: str) -> None:
    """So it is saved, dilated anew and brought back to torchvision as any other."""
    model = trained(TORCHVISION[name](torchvision))
    ours = accelerate(model)
    stride = 16 if name == "dilated" else 32
    read = getattr(mbv3fast, ours.config.variant)(weights=model.state_dict(), output_stride=stride)
    assert replace(ours.config, dropout=0, bn_momentum=0) == replace(read.config, dropout=0, bn_momentum=0)
    back = TORCHVISION[name](torchvision).eval()
    back.load_state_dict(mbv3fast.weights.to_torchvision(ours))
    with torch.inference_mode():
        torch.testing.assert_close(back(photographs(1, 80)), model(photographs(1, 80)))


def test_a_block_that_stands_in_two_places(torchvision: ModuleType) -> None:
    model = trained(TORCHVISION["large"](torchvision))
    model.features[6] = model.features[5]
    agree(accelerate(model), model, photographs(2, 80))


@pytest.mark.parametrize("name", TIMM)
def test_timms(timm: ModuleType, name: str) -> None:
    model = trained(timm.create_model(name, num_classes=9))
    agree(accelerate(model), model, photographs(2, 79))


@pytest.fixture
def small(torchvision: ModuleType) -> nn.Module:
    return trained(torchvision.models.mobilenet_v3_small(num_classes=5))


def own_eps(model: nn.Module) -> None:
    model.features[3].block[1][1].eps = 0.5


def own_strides(model: nn.Module) -> None:
    model.features[0][0].stride = (1, 1)


def own_classifier(model: nn.Module) -> None:
    model.classifier[3] = nn.Sequential(nn.Linear(1024, 16), nn.Tanh(), nn.Linear(16, 3))


def no_classifier(model: nn.Module) -> None:
    model.classifier[3] = nn.Identity()


def more_classifier(model: nn.Module) -> None:
    model.classifier.append(nn.Softmax(1))


def whole_classifier(model: nn.Module) -> None:
    model.classifier = nn.Linear(576, 7)


def short_classifier(model: nn.Module) -> None:
    model.classifier = nn.Sequential(nn.Dropout(0.3), nn.Linear(576, 3))


def normed_classifier(model: nn.Module) -> None:
    model.classifier = nn.Sequential(nn.Linear(576, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 5))


def all_but_a_classifier(model: nn.Module) -> None:
    model.classifier = nn.Identity()


class Halved(nn.Linear):
    """A layer that isn't what its base is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def halved_head(model: nn.Module) -> None:
    model.classifier[0] = Halved(576, 1024)


def halved_classifier(model: nn.Module) -> None:
    model.classifier[3] = Halved(1024, 5)


def no_dropout(model: nn.Module) -> None:
    model.classifier[2] = nn.Identity()


def own_activation(model: nn.Module) -> None:
    model.features[5].block[0][2] = nn.ReLU()


@pytest.mark.parametrize(
    "change",
    [
        *(own_eps, own_strides, own_classifier, no_classifier, more_classifier, no_dropout, own_activation),
        *(whole_classifier, short_classifier, normed_classifier, all_but_a_classifier, halved_head, halved_classifier),
    ],
    ids=lambda change: change.__name__,
)
def test_what_users_do_to_a_model_holds(small: nn.Module, change: Callable[[nn.Module], None]) -> None:
    change(small)
    small.eval()
    agree(accelerate(small), small, photographs(2, 64))


def test_a_timm_models_classifier_may_be_another(timm: ModuleType) -> None:
    model = timm.create_model("mobilenetv3_small_100", drop_rate=0.3, drop_path_rate=0.2)
    model.classifier = nn.Sequential(nn.LayerNorm(1024), nn.Linear(1024, 4))
    trained(model)
    ours = accelerate(model)
    agree(ours, model, photographs(2, 64))
    assert ours.config.dropout == 0.3
    assert accelerate(timm.create_model("mobilenetv3_small_100", num_classes=0)).get_classifier() is not None


def idle_norms(model: nn.Module) -> set[str]:
    return {
        name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d) and not module.training
    }


def test_the_result_is_a_copy_in_the_models_mode_and_dtype(small: nn.Module) -> None:
    small.half().train()
    for parameter in small.features[:3].parameters():
        parameter.requires_grad_(False)
    small.features[1].eval()  # a part that a user froze
    ours = accelerate(small)
    assert ours.training
    assert small.training
    assert not small.features[1].training
    assert idle_norms(ours) == idle_norms(small)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float16}
    frozen = {name for name, parameter in ours.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in small.named_parameters() if not parameter.requires_grad}
    before = ours.features[0][0].weight.clone()
    with torch.no_grad():
        small.features[0][0].weight.zero_()
    assert torch.equal(ours.features[0][0].weight, before)


def test_an_equivalent_that_differs_is_not_handed_back(small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = acceleration._fill

    def wrong(ours: Any, network: Any) -> None:
        fill(ours, network)
        with torch.no_grad():
            ours.features[6].block[1][1].weight[3] += 1

    monkeypatch.setattr(acceleration, "_fill", wrong)
    with pytest.raises(AccelerationError, match=r"^the modules err by [\d.e+-]+, [\d.e+-]+ is allowed$"):
        accelerate(small)


def test_arguments_are_those_of_large(small: nn.Module) -> None:
    assert accelerate(small, backend="torch").backend == "torch"
    with pytest.raises(ValueError, match="backend: got 'x'"):
        accelerate(copy.deepcopy(small), backend="x")
