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
from torch.nn.utils import parametrizations

import mbv3fast
from mbv3fast import AccelerationError, UnknownModuleError, accelerate, acceleration
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


def test_the_result_is_a_copy_in_the_models_mode_and_dtype(small: nn.Module) -> None:
    small.half().train()
    for parameter in small.features[:3].parameters():
        parameter.requires_grad_(False)
    small.features[1].eval()  # a part that a user froze
    ours = accelerate(small)
    assert ours.training
    assert small.training
    assert not small.features[1].training
    assert {
        name for name, module in ours.named_modules() if isinstance(module, nn.BatchNorm2d) and not module.training
    } == {name for name, module in small.named_modules() if isinstance(module, nn.BatchNorm2d) and not module.training}
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float16}
    frozen = {name for name, parameter in ours.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in small.named_parameters() if not parameter.requires_grad}
    before = ours.features[0][0].weight.clone()
    with torch.no_grad():
        small.features[0][0].weight.zero_()
    assert torch.equal(ours.features[0][0].weight, before)


def hook(model: nn.Module) -> None:
    model.features[4].block[1].register_forward_hook(lambda *_: None)


def parametrization(model: nn.Module) -> None:
    parametrizations.weight_norm(model.features[2].block[0][0])


def another_forward(model: nn.Module) -> None:
    model.features[7].forward = lambda x: x


def another_activation(model: nn.Module) -> None:
    model.features[5].block[0][2] = nn.SiLU()


def another_norm(model: nn.Module) -> None:
    model.features[0][1] = nn.GroupNorm(4, 16)


def another_pool(model: nn.Module) -> None:
    model.avgpool = nn.AdaptiveMaxPool2d(1)


def another_kernel(model: nn.Module) -> None:
    model.features[4].block[1][0] = nn.Conv2d(96, 96, 7, 2, 3, groups=96, bias=False)


def another_gate(model: nn.Module) -> None:
    model.features[4].block[2].scale_activation = nn.Sigmoid()


class OwnNorm(nn.BatchNorm2d):
    """Who knows what it computes in training."""


def own_norm(model: nn.Module) -> None:
    model.features[0][1] = OwnNorm(16)


def own_container(model: nn.Module) -> None:
    model.features[3].block = nn.ModuleList(model.features[3].block)


def no_pool(model: nn.Module) -> None:
    del model.avgpool


def wide_pool(model: nn.Module) -> None:
    model.avgpool = nn.AdaptiveAvgPool2d(2)


def no_last_conv(model: nn.Module) -> None:
    model.features = model.features[:-1]


def grouped_excite(model: nn.Module) -> None:
    model.features[4].block[2].fc1 = nn.Conv2d(96, 24, 1, groups=2)


class Two(nn.Module):
    """A classifier of two outputs."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def two_outputs(model: nn.Module) -> None:
    model.classifier[3] = Two()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (hook, r"features\.4\.block\.1 has hooks"),
        (parametrization, r"features\.2\.block\.0\.0 (has parametrizations|is a ParametrizedConv2d)"),
        (another_forward, r"features\.7\.forward was replaced"),
        (another_activation, r"features\.5\.block\.0\.2 is a SiLU, needs ReLU or Hardswish"),
        (another_norm, r"features\.0\.1 is a GroupNorm, needs BatchNorm2d"),
        (another_pool, r"avgpool is a AdaptiveMaxPool2d, needs AdaptiveAvgPool2d"),
        (another_kernel, r"features\.4: blocks: kernel: got 7, needs one of 3, 5"),
        (another_gate, r"features\.4\.block\.2\.scale_activation is a Sigmoid, needs Hardsigmoid"),
        (own_norm, r"features\.0\.1 is a OwnNorm, needs BatchNorm2d"),
        (own_container, r"features\.3\.block is a ModuleList, needs Sequential"),
        (no_pool, r"model lacks a part: .*avgpool"),
        (wide_pool, r"avgpool makes 2 outputs, needs 1"),
        (no_last_conv, r"features needs convolutions at its ends"),
        (grouped_excite, r"features\.4\.block\.2 has no plain 1x1 convolutions with biases"),
        (two_outputs, r"the classifier puts out a tuple, needs a tensor"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_known_is_refused_by_name(
    small: nn.Module, change: Callable[[nn.Module], None], words: str
) -> None:
    change(small)
    with pytest.raises(UnknownModuleError, match=words):
        accelerate(small)


def set_part(name: str, module: nn.Module) -> Callable[[nn.Module], None]:
    return lambda model: model.set_submodule(name, module)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_part("norm_head", nn.BatchNorm2d(1024)), r"norm_head is a BatchNorm2d, needs Identity"),
        (lambda model: setattr(model.global_pool, "pool_type", "max"), r"global_pool takes the max, needs the mean"),
        (
            lambda model: model.blocks.append(model.blocks[1]),
            r"blocks\.6\.0 is a InvertedResidual behind the last conv",
        ),
        (lambda model: model.blocks.pop(-1), r"blocks end without a convolution"),
        (lambda model: model.__delattr__("act2"), r"model lacks a part: .*act2"),
        (set_part("act2", nn.Tanh()), r"act2 is a Tanh, needs ReLU or Hardswish"),
        (set_part("conv_head", nn.Linear(576, 1024)), r"conv_head is a Linear, needs Conv2d"),
        (set_part("conv_head", nn.Conv2d(576, 1024, 1, padding=1)), r"conv_head is no plain 1x1 convolution"),
        (set_part("blocks.5.0.aa", nn.AvgPool2d(1)), r"blocks\.5\.0 has a residual or an anti-aliasing filter"),
        (set_part("blocks.1.0.aa", nn.AvgPool2d(1)), r"blocks\.1\.0 has an anti-aliasing filter or a space-to-depth"),
        (set_part("blocks.1.0.bn1.drop", nn.Dropout()), r"blocks\.1\.0\.bn1\.drop is a Dropout, needs Identity"),
        (set_part("blocks.1.0.bn3.act", nn.ReLU()), r"blocks\.1\.0\.conv_pwl has an activation behind it, needs none"),
        (set_part("blocks.1.0.bn2.act", nn.Identity()), r"blocks\.1\.0\.conv_dw has no activation"),
        (set_part("blocks.0.0.se.gate", nn.Sigmoid()), r"blocks\.0\.0\.se\.gate is a Sigmoid, needs Hardsigmoid"),
        (
            lambda model: setattr(model.blocks[1][0], "has_skip", True),
            r"blocks\.1\.0 expands to as many .* doesn't fit",
        ),
        (set_part("blocks.1", nn.ModuleList()), r"blocks\.1 is a ModuleList, needs Sequential"),
    ],
)
def test_what_is_not_known_of_timms_is_refused_by_name(
    timm: ModuleType, change: Callable[[nn.Module], Any], words: str
) -> None:
    model = timm.create_model("mobilenetv3_small_100", num_classes=5).eval()
    change(model)
    with pytest.raises(UnknownModuleError, match=words):
        accelerate(model)


class Own(nn.Module):
    """Something that wraps a model."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def test_other_models_are_refused_with_a_hint(small: nn.Module, torchvision: ModuleType) -> None:
    for model, words in (
        (
            Own(small),
            r"model is a .*Own, needs torchvision\.models\.mobilenetv3\.MobileNetV3 or .*; is it model\.module",
        ),
        (torchvision.models.resnet18(), r"model is a torchvision\.models\.resnet\.ResNet, needs"),
        (mbv3fast.small(), r"model is a mbv3fast\.fast\.FusedMobileNetV3, needs"),
        (torch.compile(small), r"is it model\._orig_mod"),
    ):
        with pytest.raises(UnknownModuleError, match=words):
            accelerate(model)


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
