"""Folding: the numbers, what is read from the live modules, and what is refused with which reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import mbv3fast
from mbv3fast.config import network
from mbv3fast.fast import FusedMobileNetV3
from mbv3fast.fold import FoldedBlock, FoldedConv, UnsupportedError, fold_features, fold_head, fold_pool
from mbv3fast.layers import Conv2dSame, ConvBNAct
from tests.networks import calibrated_large, randomise, trained_small

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def model() -> FusedMobileNetV3:
    return copy.deepcopy(trained_small())


def fold(subject: FusedMobileNetV3) -> None:
    """Fold every part, as an engine does."""
    fold_features(subject.features)
    fold_pool(subject.avgpool)
    fold_head(subject.classifier)


def conv_bn(bias: bool = False, affine: bool = True, **options: Any) -> ConvBNAct:
    """A lone ConvBNAct in float64 with random statistics."""
    torch.manual_seed(0)
    layer = ConvBNAct(6, 8, 3, network("small"), activation="hardswish")
    layer[0] = nn.Conv2d(6, 8, 3, bias=bias, **{"padding": 1, **options})
    layer[1] = nn.BatchNorm2d(8, eps=0.01, affine=affine)
    layer[1].running_mean.normal_()
    layer[1].running_var.uniform_(0.1, 2)
    if affine:
        nn.init.normal_(layer[1].weight)
        nn.init.normal_(layer[1].bias)
    return layer.double().eval()


def run(folded: FoldedConv, x: Tensor) -> Tensor:
    """The folded convolution without its activation, by PyTorch."""
    left, right, top, bottom = folded.padding
    assert (left, top) == (right, bottom)
    return nn.functional.conv2d(
        x, folded.weight, folded.bias, folded.stride, (top, left), folded.dilation, folded.groups
    )


@pytest.mark.parametrize(
    "options",
    [
        *[{}, {"bias": True}, {"affine": False}, {"bias": True, "affine": False}],
        *[{"stride": 2}, {"dilation": 2, "padding": 2}, {"padding": (0, 2)}, {"groups": 2}],
    ],
)
def test_a_folded_convolution_equals_conv_then_norm(options: dict[str, Any]) -> None:
    layer = conv_bn(**options)
    (folded,) = fold_features(nn.Sequential(layer))
    assert isinstance(folded, FoldedConv)
    x = torch.randn(2, 6, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(run(folded, x), layer[1](layer[0](x)), **EXACT)


@pytest.mark.parametrize(("dtype", "wide"), [(torch.float16, torch.float32), (torch.float64, torch.float64)])
def test_half_precision_is_folded_in_float32(dtype: torch.dtype, wide: torch.dtype) -> None:
    layer = conv_bn().to(dtype)
    (folded,) = fold_features(nn.Sequential(layer))
    (exact,) = fold_features(nn.Sequential(copy.deepcopy(layer).double()))
    assert (folded.weight.dtype, folded.bias.dtype) == (wide, wide)
    torch.testing.assert_close(folded.weight.double(), exact.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(folded.bias.double(), exact.bias, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("subject", [trained_small, calibrated_large])
def test_every_layer_of_a_network_is_read_as_it_is(subject: Callable[[], FusedMobileNetV3]) -> None:
    network_model = subject()
    config = network_model.config
    stem, *blocks, last = fold_features(network_model.features)
    assert (stem.stride, stem.padding, stem.activation) == (2, (1, 1, 1, 1), "hardswish")
    assert last.weight.shape == (*config.last_convs, config.blocks[-1].out_channels, 1, 1)
    assert last.activation == "hardswish"
    for index, (block, wanted) in enumerate(zip(blocks, config.blocks, strict=True), start=1):
        assert isinstance(block, FoldedBlock)
        assert block.name == f"features.{index}"
        assert (block.expand is not None, block.has_residual) == (wanted.has_expand, wanted.has_residual)
        assert (block.depthwise.stride, block.depthwise.activation) == (wanted.stride, wanted.activation)
        assert block.depthwise.padding == (wanted.kernel // 2,) * 4
        assert block.depthwise.groups == wanted.expanded
        assert block.project.activation is None
        squeeze = 0 if block.squeeze_excite is None else block.squeeze_excite.fc1_weight.shape[0]
        assert squeeze == wanted.squeeze
    first, final = fold_head(network_model.classifier)
    assert (first.name, first.activation) == ("classifier.0", "hardswish")
    assert (final.name, final.activation) == ("classifier.3", None)


def test_tensorflows_padding_is_kept_as_a_rule() -> None:
    """Its amounts depend on the input's size, which folding doesn't know."""
    convs = [module for module in mbv3fast.small(tf_same_padding=True).modules() if isinstance(module, ConvBNAct)]
    for layer in convs:
        (folded,) = fold_features(nn.Sequential(layer.eval()))
        assert (folded.padding == "same") is isinstance(layer[0], Conv2dSame) is (folded.stride == 2)


def test_a_layer_that_appears_twice_is_folded_twice() -> None:
    layer = conv_bn()
    assert len(fold_features(nn.Sequential(layer, layer))) == 2
    activation = nn.ReLU()
    head = fold_head(nn.Sequential(nn.Linear(4, 4), activation, nn.Linear(4, 4), activation))
    assert [linear.activation for linear in head] == ["relu", "relu"]


def test_folding_leaves_the_model_alone() -> None:
    subject = randomise(mbv3fast.small(num_classes=10), seed=3)
    before = {key: tensor.clone() for key, tensor in subject.state_dict().items()}
    fold(subject)
    assert all(torch.equal(tensor, before[key]) for key, tensor in subject.state_dict().items())


def put(path: str, child: str, new: Callable[[], nn.Module]) -> Callable[[nn.Module], None]:
    return lambda m: setattr(m.get_submodule(path), child, new())


def attribute(path: str, **values: Any) -> Callable[[nn.Module], None]:
    return lambda m: m.get_submodule(path).__dict__.update(values)


def hook(path: str) -> Callable[[nn.Module], None]:
    return lambda m: m.get_submodule(path).register_forward_hook(lambda *_: None)


def pre_hook(path: str) -> Callable[[nn.Module], None]:
    return lambda m: m.get_submodule(path).register_forward_pre_hook(lambda *_: None)


BLOCK, CONV, NORM, SE = "features.4", "features.4.block.1.0", "features.4.block.1.1", "features.4.block.2"

REFUSED: dict[str, tuple[Callable[[nn.Module], Any], str]] = {
    "another activation": (put("features.0", "2", nn.SiLU), r"features\.0\.2 is a SiLU, needs ReLU or Hardswish"),
    "no norm": (put("features.4.block.1", "1", nn.Identity), rf"{NORM} is a Identity, needs BatchNorm2d"),
    "another norm": (put("features.0", "1", lambda: nn.GroupNorm(4, 16)), r"features\.0\.1 is a GroupNorm"),
    "no statistics": (
        put("features.0", "1", lambda: nn.BatchNorm2d(16, track_running_stats=False).eval()),
        r"features\.0\.1 keeps no running statistics",
    ),
    "norm in training": (lambda m: m.get_submodule(NORM).train(), rf"{NORM} is in training mode"),
    "dropout in training": (lambda m: m.classifier[2].train(), r"classifier\.2 is in training mode"),
    "no layer": (put("features", "3", nn.Identity), r"features\.3 is a Identity, needs InvertedResidual"),
    "added part": (
        lambda m: m.features[4].block.append(nn.Identity()),
        r"features\.4\.block has 5 parts, 4 were built",
    ),
    "added layer": (lambda m: m.features[12].append(nn.ReLU()), r"features\.12 has 4 parts, needs conv, batch norm"),
    "no squeeze-excite": (put("features.4.block", "2", nn.Identity), rf"{SE} is a Identity, needs SqueezeExcite"),
    "another gate": (put(SE, "scale_activation", nn.Sigmoid), rf"{SE}\.scale_activation is a Sigmoid"),
    "another pool": (put(SE, "avgpool", lambda: nn.AdaptiveMaxPool2d(1)), rf"{SE}\.avgpool is a AdaptiveMaxPool2d"),
    "wider squeeze": (put(SE, "fc1", lambda: nn.Conv2d(96, 24, 3, padding=1)), rf"{SE}\.fc1 is no plain 1x1"),
    "mirrored border": (attribute(CONV, padding_mode="reflect"), rf"{CONV} pads with reflect"),
    "named padding": (attribute(CONV, padding="same"), rf"{CONV} pads with zeros, same"),
    "oblong stride": (attribute(CONV, stride=(2, 1)), rf"{CONV} has a kernel, strides or dilations that differ"),
    "oblong dilation": (attribute(CONV, dilation=(1, 2)), rf"{CONV} has a kernel, strides or dilations that differ"),
    "large pool": (put("", "avgpool", lambda: nn.AdaptiveAvgPool2d(2)), r"avgpool makes 2 outputs, needs 1"),
    "lone linear": (put("", "classifier", lambda: nn.Linear(576, 10)), r"classifier is a Linear, needs Sequential"),
    "no linear": (put("", "classifier", nn.Sequential), r"classifier has no linear layer"),
    "activation first": (put("classifier", "0", nn.ReLU), r"classifier\.0 is a ReLU that follows no linear layer"),
    "two activations": (put("classifier", "3", nn.ReLU), r"classifier\.3 is a ReLU that follows no linear layer"),
    "other head": (put("classifier", "1", nn.Tanh), r"classifier\.1 is a Tanh, needs ReLU or Hardswish"),
    "parametrized": (
        lambda m: parametrize.register_parametrization(m.get_submodule(CONV), "weight", nn.Identity()),
        rf"{CONV} is a ParametrizedConv2d, needs Conv2d or Conv2dSame",
    ),
    "weight norm": (
        lambda m: parametrizations.weight_norm(m.classifier[3]),
        r"classifier\.3 is a ParametrizedLinear",
    ),
    "pruned": (lambda m: prune.l1_unstructured(m.get_submodule(CONV), "weight", 0.5), rf"{CONV} has hooks"),
    "own forward": (attribute(BLOCK, forward=lambda x: x), rf"{BLOCK}\.forward was replaced"),
    **{
        f"hook on {path}": (hook(path), f"{path} has hooks")
        for path in (
            *("features", BLOCK, f"{BLOCK}.block", f"{BLOCK}.block.0", CONV, NORM, f"{BLOCK}.block.1.2", SE),
            *(f"{SE}.avgpool", f"{SE}.fc1", f"{SE}.activation", f"{SE}.scale_activation", "avgpool"),
            *("classifier", "classifier.0", "classifier.1", "classifier.2", "classifier.3"),
        )
    },
    "pre-hook": (pre_hook(CONV), rf"{CONV} has hooks"),
}


def test_the_untouched_model_is_folded() -> None:
    fold(model())


@pytest.mark.parametrize("case", REFUSED)
def test_what_only_pytorch_runs_right_is_refused(case: str) -> None:
    edit, reason = REFUSED[case]
    subject = model()
    edit(subject)
    with pytest.raises(UnsupportedError, match=f"^{reason}"):
        fold(subject)
