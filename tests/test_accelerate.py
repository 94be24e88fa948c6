"""`accelerate`: torchvision's and timm's own models become ours, whatever was done to them, or are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import mbv3fast
from mbv3fast import accelerate
from mbv3fast.fast import FusedMobileNetV3
from tests.networks import photographs
from tests.numerics import assert_close
from tests.peers import trained

TORCHVISION: dict[str, Callable[[ModuleType], nn.Module]] = {
    "large": lambda tv: tv.models.mobilenet_v3_large(),
    "small": lambda tv: tv.models.mobilenet_v3_small(),
    "narrow": lambda tv: tv.models.mobilenet_v3_small(width_mult=0.6, num_classes=7),
    "reduced tail": lambda tv: tv.models.mobilenet_v3_large(reduced_tail=True),
    "dilated": lambda tv: tv.models.mobilenet_v3_large(dilated=True),
    "small, dilated, reduced tail": lambda tv: tv.models.mobilenet_v3_small(dilated=True, reduced_tail=True),
}
TIMM = [
    "mobilenetv3_small_100",
    "mobilenetv3_large_150d",
    "mobilenetv3_rw",
    "tf_mobilenetv3_small_075",
    "tf_mobilenetv3_large_minimal_100",
]


@torch.inference_mode()
def agree(ours: FusedMobileNetV3, model: nn.Module, x: Tensor) -> None:
    assert ours.explain(x).fused
    assert_close(ours(x), model(x))


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvisions(torchvision: ModuleType, name: str) -> None:
    model = trained(TORCHVISION[name](torchvision))
    agree(accelerate(model), model, photographs(2, 80))


@pytest.mark.parametrize("name", TORCHVISION)
def test_it_is_the_network_that_its_weights_are_read_as(torchvision: ModuleType, name: str) -> None:
    """So it is saved, dilated anew and brought back to torchvision as any other."""
    model = trained(TORCHVISION[name](torchvision))
    ours = accelerate(model)
    stride = 16 if "dilated" in name else 32
    read = getattr(mbv3fast, ours.config.variant)(weights=model.state_dict(), output_stride=stride)
    assert ours.config == replace(read.config, dropout=0.2, bn_momentum=0.01)
    assert ours.state_dict().keys() == model.state_dict().keys()
    back = TORCHVISION[name](torchvision).eval()
    back.load_state_dict(mbv3fast.weights.to_torchvision(ours))
    with torch.inference_mode():
        torch.testing.assert_close(back(photographs(1, 80)), model(photographs(1, 80)))


def test_a_block_that_stands_in_two_places(torchvision: ModuleType) -> None:
    model = trained(TORCHVISION["large"](torchvision))
    model.features[6] = model.features[5]
    model.features[13].block[0][0].weight = model.features[12].block[0][0].weight
    trained(model)
    ours = accelerate(model)
    agree(ours, model, photographs(2, 80))
    assert len(list(ours.parameters())) == len(list(model.parameters()))  # what was shared is


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


def no_activation(model: nn.Module) -> None:
    model.features[5].block[0][2] = nn.Identity()
    del model.features[6].block[0][2]
    del model.features[12][2]


def own_padding(model: nn.Module) -> None:
    model.features[4].block[1][0].padding_mode = "circular"


def own_norms(model: nn.Module) -> None:
    model.features[2].block[0][1] = nn.BatchNorm2d(72, affine=False).eval()
    model.features[3].block[0][1] = nn.BatchNorm2d(88, track_running_stats=False).eval()


def own_biases(model: nn.Module) -> None:
    model.features[3].block[0][0] = nn.Conv2d(24, 88, 1)
    model.classifier[3] = nn.Linear(1024, 5, bias=False)


def own_dilation(model: nn.Module) -> None:
    conv = model.features[6].block[1][0]
    conv.dilation, conv.padding = (2, 2), (4, 4)


@pytest.mark.parametrize(
    "change",
    [
        *(own_eps, own_strides, own_dilation, own_activation, no_activation, no_dropout, own_biases),
        *(own_classifier, no_classifier, more_classifier),
        *(whole_classifier, short_classifier, normed_classifier, all_but_a_classifier, halved_head, halved_classifier),
    ],
    ids=lambda change: change.__name__,
)
def test_what_users_do_to_a_model_holds(small: nn.Module, change: Callable[[nn.Module], None]) -> None:
    change(small)
    small.eval()
    trained(small)
    agree(accelerate(small), small, photographs(2, 64))


@pytest.mark.parametrize("change", [own_padding, own_norms], ids=lambda change: change.__name__)
def test_what_no_engine_takes_is_pytorchs(small: nn.Module, change: Callable[[nn.Module], None]) -> None:
    change(small)
    ours, x = accelerate(small), photographs(2, 64)
    with torch.inference_mode():
        assert not ours.explain(x).fused
        assert_close(ours(x), small.eval()(x))


@pytest.mark.parametrize("change", [own_eps, own_activation, own_strides, whole_classifier])
def test_an_altered_networks_weights_are_no_others(small: nn.Module, change: Callable[[nn.Module], None]) -> None:
    """They fit another that is altered alike; what would build one by the config refuses them."""
    change(small)
    ours, again = accelerate(small), accelerate(small)
    again.load_state_dict(ours.state_dict())
    with pytest.raises(mbv3fast.WeightsError, match=r"^weights: these are of an altered network: \S+ is "):
        mbv3fast.small(weights=ours.state_dict())


@pytest.mark.parametrize(
    ("change", "width"),
    [(whole_classifier, 576), (all_but_a_classifier, 576), (normed_classifier, 32), (halved_head, 1024)],
)
def test_any_classifier_may_be_reset(small: nn.Module, change: Callable[[nn.Module], None], width: int) -> None:
    change(small)
    ours, x = accelerate(small), photographs(2, 64)
    ours.reset_classifier(3)
    with torch.inference_mode():
        assert ours(x).shape == (2, 3)
        assert ours.head_hidden_size == width
        assert ours.forward_head(ours.forward_features(x), pre_logits=True).shape == (2, width)


def test_a_timm_models_classifier_may_be_another(timm: ModuleType) -> None:
    model = timm.create_model("mobilenetv3_small_100", drop_rate=0.3, drop_path_rate=0.2)
    model.classifier = nn.Sequential(nn.LayerNorm(1024), nn.Linear(1024, 4))
    trained(model)
    ours = accelerate(model)
    agree(ours, model, photographs(2, 64))
    assert ours.config.dropout == 0.3
    assert accelerate(timm.create_model("mobilenetv3_small_100", num_classes=0)).get_classifier() is not None
