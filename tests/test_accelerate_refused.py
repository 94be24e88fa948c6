"""What `accelerate` doesn't know is refused by the name of its module."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import mbv3fast
from mbv3fast import UnknownModuleError, accelerate


@pytest.fixture
def small(torchvision: ModuleType) -> nn.Module:
    return torchvision.models.mobilenet_v3_small(num_classes=5).eval()


def set_part(name: str, module: nn.Module) -> Callable[[nn.Module], None]:
    return lambda model: model.set_submodule(name, module)


def hook(model: nn.Module) -> None:
    model.features[4].block[1].register_forward_hook(lambda *_: None)


def parametrization(model: nn.Module) -> None:
    parametrizations.weight_norm(model.features[2].block[0][0])


def another_forward(model: nn.Module) -> None:
    model.features[7].forward = lambda x: x


def another_kernel(model: nn.Module) -> None:
    model.features[4].block[1][0] = nn.Conv2d(96, 96, 7, 2, 3, groups=96, bias=False)


class OwnNorm(nn.BatchNorm2d):
    """Who knows what it computes in training."""


def own_norm(model: nn.Module) -> None:
    model.features[0][1] = OwnNorm(16)


def own_container(model: nn.Module) -> None:
    model.features[3].block = nn.ModuleList(model.features[3].block)


def no_pool(model: nn.Module) -> None:
    del model.avgpool


def no_last_conv(model: nn.Module) -> None:
    model.features = model.features[:-1]


def grouped_excite(model: nn.Module) -> None:
    model.features[4].block[2].fc1 = nn.Conv2d(96, 24, 1, groups=2)


def gradient_hook(model: nn.Module) -> None:
    model.features[4].block[1].register_full_backward_hook(lambda *_: None)


def tensor_hook(model: nn.Module) -> None:
    model.classifier[3].weight.register_hook(lambda gradient: gradient)


NAMED = (
    "features.0.0.weight",
    "features.0.1.running_var",
    "features.4.block.2.fc1.weight",
    "features.4.block.2.fc2.bias",
    "classifier.0.bias",
    "classifier.3.weight",
)


def infinite(name: str) -> Callable[[nn.Module], None]:
    def change(model: nn.Module) -> None:
        model.state_dict()[name][3] = torch.inf

    return change


def bare_excite(model: nn.Module) -> None:
    model.features[4].block[2].fc1 = nn.Conv2d(96, 24, 1, bias=False)


def uneven_stride(model: nn.Module) -> None:
    model.features[0][0].stride = (2, 1)


def long_conv(model: nn.Module) -> None:
    model.features[0].append(nn.Identity())


def short_features(model: nn.Module) -> None:
    model.features = model.features[:1]


def two_excites(model: nn.Module) -> None:
    model.features[4].block.insert(2, model.features[4].block[2])


def another_method(model: nn.Module) -> None:
    model.features[0][0]._conv_forward = lambda *_: None


class Buffer(torch.Tensor):
    """Stands for the tensor classes of other libraries."""


def another_buffer(model: nn.Module) -> None:
    model.features[0][1].running_mean = torch.zeros(16).as_subclass(Buffer)


def state_hook(model: nn.Module) -> None:
    model.features[3].register_state_dict_post_hook(lambda *_: None)


def late_hook(model: nn.Module) -> None:
    model.classifier[3].weight.register_post_accumulate_grad_hook(lambda _: None)


def huge_eps(model: nn.Module) -> None:
    model.features[0][1].eps = 2


def huge_momentum(model: nn.Module) -> None:
    model.features[0][1].momentum = 5


def whole_dropout(model: nn.Module) -> None:
    model.classifier[2].p = 1.0


def another_shape(model: nn.Module) -> None:
    model.features[0][0].weight = nn.Parameter(torch.zeros(16, 3, 5, 5))


class Quantised(nn.Parameter):
    """Stands for the tensor classes of other libraries."""


def another_tensor(model: nn.Module) -> None:
    model.features[0][0].weight = Quantised(torch.zeros(16, 3, 3, 3))


def namesake(model: nn.Module) -> None:
    class Conv2d(nn.Conv2d):
        """Of the same name."""

    model.features[0][0] = Conv2d(3, 16, 3, 2, 1, bias=False)


def no_block(model: nn.Module) -> None:
    model.features._modules["3"] = None


def no_classifier(model: nn.Module) -> None:
    model.classifier = None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (hook, r"features\.4\.block\.1 has hooks"),
        (parametrization, r"features\.2\.block\.0\.0 has parametrizations, which must be removed"),
        (another_forward, r"features\.7\.forward was replaced"),
        (set_part("features.5.block.0.2", nn.SiLU()), r"features\.5\.block\.0\.2 is a SiLU, needs ReLU or Hardswish"),
        (set_part("features.0.1", nn.GroupNorm(4, 16)), r"features\.0\.1 is a GroupNorm, needs BatchNorm2d"),
        (set_part("avgpool", nn.AdaptiveMaxPool2d(1)), r"avgpool is a AdaptiveMaxPool2d, needs AdaptiveAvgPool2d"),
        (another_kernel, r"features\.4: blocks: kernel: got 7, needs one of 3, 5"),
        (
            set_part("features.4.block.2.scale_activation", nn.Sigmoid()),
            r"features\.4\.block\.2\.scale_activation is a Sigmoid, needs Hardsigmoid",
        ),
        (own_norm, r"features\.0\.1 is a OwnNorm, needs BatchNorm2d"),
        (own_container, r"features\.3\.block is a ModuleList, needs Sequential"),
        (no_pool, r"model lacks a part: .*avgpool"),
        (set_part("avgpool", nn.AdaptiveAvgPool2d(2)), r"avgpool makes 2 outputs, needs 1"),
        (no_last_conv, r"features needs convolutions at its ends"),
        (grouped_excite, r"features\.4\.block\.2\.fc1 is Conv2d.*groups=2.*, needs a plain 1x1 convolution"),
        (bare_excite, r"features\.4\.block\.2\.fc1 has weight, needs weight, bias"),
        (
            set_part("features.4.block.2.avgpool", nn.AdaptiveMaxPool2d(1)),
            r"features\.4\.block\.2\.avgpool is a AdaptiveMaxPool2d, needs AdaptiveAvgPool2d",
        ),
        (uneven_stride, r"features\.0\.0\.stride is \(2, 1\), needs two equal numbers"),
        (long_conv, r"features\.0 has 4 parts, needs conv, batch norm and at most an activation"),
        (short_features, r"features needs convolutions at its ends, and blocks between them"),
        (two_excites, r"features\.4 has 3 convolutions and 2 squeeze-excites"),
        (lambda model: setattr(model.features[0][1], "eps", 0), r"features\.0\.1\.eps is 0, needs a number above 0"),
        (lambda model: setattr(model.classifier[2], "p", -0.1), r"classifier\.2\.p is -0\.1, needs a number from 0"),
        (another_method, r"features\.0\.0\._conv_forward was replaced"),
        (another_buffer, r"features\.0\.1\.running_mean is a Buffer, needs a plain tensor"),
        (state_hook, r"features\.3 has hooks"),
        (late_hook, r"classifier\.3 has hooks"),
        (gradient_hook, r"features\.4\.block\.1 has hooks"),
        (tensor_hook, r"classifier\.3 has hooks"),
        *((infinite(name), rf"{re.escape(name)} isn't finite everywhere") for name in NAMED),
        (huge_eps, r"features\.0\.1\.eps is 2, needs a number above 0, at most 1"),
        (huge_momentum, r"features\.0\.1\.momentum is 5, needs None or a number from 0 to 1"),
        (whole_dropout, r"classifier\.2\.p is 1\.0, needs a number from 0 to below 1"),
        (another_shape, r"features\.0\.0\.weight has shape \(16, 3, 5, 5\), needs \(16, 3, 3, 3\)"),
        (another_tensor, r"features\.0\.0\.weight is a Quantised, needs a plain tensor"),
        (namesake, r"features\.0\.0 is a .*namesake\.<locals>\.Conv2d, needs Conv2d"),
        (no_block, r"features\.3 is a NoneType, needs InvertedResidual"),
        (no_classifier, r"model has no module for a classifier"),
        (lambda model: model.to("meta"), r"features\.0\.0\.weight is on meta, it has no data"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_not_known_is_refused_by_name(
    small: nn.Module, change: Callable[[nn.Module], None], words: str
) -> None:
    change(small)
    with pytest.raises(UnknownModuleError, match=words):
        accelerate(small)


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
