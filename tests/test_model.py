"""The network by the numbers of its papers and peers, and the module's arguments."""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any

import pytest
import torch
import torchinfo
from torch import Tensor, nn

import mbv3fast
from mbv3fast.layers import Conv2dSame
from mbv3fast.tables import Variant
from tests.networks import photographs

VARIANTS: tuple[Variant, ...] = ("large", "small")
# The source document's summary of Large at 224x224: side and channels of each bottleneck's output, parameters.
BOTTLENECKS = [
    *[(112, 16, 464), (56, 24, 3_440), (56, 24, 4_440), (28, 40, 9_458), (28, 40, 20_510), (28, 40, 20_510)],
    *[(14, 80, 32_080), (14, 80, 34_760), (14, 80, 31_992), (14, 80, 31_992), (14, 112, 214_424)],
    *[(14, 112, 386_120), (7, 160, 429_224), (7, 160, 797_360), (7, 160, 797_360)],
]


def build(variant: Variant, **arguments: Any) -> Any:
    return getattr(mbv3fast, variant)(**arguments)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def images(batch: int = 2, height: int = 64, width: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("variant", "arguments", "parameters"),
    [
        ("large", {}, 5_481_198),
        ("small", {}, 2_537_238),
        ("large", {"source": "seed"}, 5_481_198),
        ("large", {"se_divisor": 8}, 5_483_032),
        ("small", {"se_divisor": 8}, 2_542_856),
        ("small", {"source": "torchvision"}, 2_542_856),
        ("large", {"source": "timm", "se_divisor": 1}, 5_481_198),
        ("large", {"minimal": True}, 3_924_288),
        ("small", {"minimal": True}, 2_044_736),
        ("large", {"source": "torchvision", "width_mult": 0.75}, 3_377_576),
        ("large", {"source": "timm", "width_mult": 0.75}, 3_993_528),
        ("small", {"source": "timm", "width_mult": 0.5}, 1_593_224),
        ("small", {"source": "timm-tf", "width_mult": 0.75}, 2_041_872),
        ("large", {"num_classes": 10}, 5_481_198 - 990 * 1281),
        ("large", {"num_classes": 0}, 5_481_198 - 1_281_000),
        ("large", {"in_chans": 1}, 5_481_198 - 2 * 16 * 9),
        ("large", {"in_chans": 4}, 5_481_198 + 16 * 9),
    ],
)
def test_parameter_counts(variant: Variant, arguments: dict[str, Any], parameters: int) -> None:
    assert count(build(variant, **arguments)) == parameters


@pytest.mark.parametrize(("variant", "keys", "norms"), [("large", 312, 46), ("small", 244, 34)])
def test_state_dicts_have_torchvisions_keys_and_shapes(
    torchvision: ModuleType, variant: Variant, keys: int, norms: int
) -> None:
    ours = build(variant, se_divisor=8)
    theirs = getattr(torchvision.models, f"mobilenet_v3_{variant}")()
    shapes = [{key: tensor.shape for key, tensor in model.state_dict().items()} for model in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert len(shapes[0]) == keys
    assert sum(isinstance(module, nn.BatchNorm2d) for module in ours.modules()) == norms


def test_torchinfo_counts_the_seeds_mult_adds() -> None:
    summary = torchinfo.summary(mbv3fast.large(), (2, 3, 224, 224), verbose=0)
    assert round(summary.total_mult_adds / 1e6, 2) == 433.24
    assert summary.total_params == 5_481_198


def test_the_seeds_table_of_large() -> None:
    model = mbv3fast.large().eval()
    stem, *blocks, last = model.features
    assert [count(part) for part in stem] == [432, 32, 0]
    assert [count(part) for part in last] == [153_600, 1_920, 0]
    assert [count(layer) for layer in model.classifier] == [1_230_080, 0, 0, 1_281_000]
    rows = []
    with torch.inference_mode():
        x = stem(photographs(1, 224))
        assert x.shape == (1, 16, 112, 112)
        for block in blocks:
            x = block(x)
            rows.append((x.shape[3], x.shape[1], count(block)))
            assert x.shape[2] == x.shape[3]
        assert last(x).shape == (1, 960, 7, 7)
    assert rows == BOTTLENECKS


@pytest.mark.parametrize(
    ("arguments", "eps", "momentum", "dropout"),
    [
        ({}, 1e-5, 0.01, 0.2),
        ({"se_divisor": 8}, 1e-3, 0.01, 0.2),
        ({"source": "timm"}, 1e-5, 0.01, 0.2),
        ({"source": "timm-tf"}, 1e-3, 0.01, 0.2),
        ({"se_divisor": 8, "bn_eps": 1e-5}, 1e-5, 0.01, 0.2),
        ({"bn_eps": 1e-3, "bn_momentum": 0.1, "dropout": 0.0}, 1e-3, 0.1, 0.0),
    ],
)
def test_defaults_and_arguments_of_norms_and_dropout(
    arguments: dict[str, Any], eps: float, momentum: float, dropout: float
) -> None:
    model = mbv3fast.small(**arguments)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(eps, momentum)}
    assert model.classifier[2].p == dropout


@pytest.mark.parametrize(("arguments", "same"), [({}, 0), ({"tf_same_padding": True}, 5), ({"source": "timm-tf"}, 5)])
def test_same_padding_is_for_the_five_strided_convolutions(arguments: dict[str, Any], same: int) -> None:
    convs = [module for module in mbv3fast.large(**arguments).modules() if isinstance(module, nn.Conv2d)]
    strided = [conv for conv in convs if conv.stride == (2, 2)]
    assert len(strided) == 5
    assert sum(isinstance(conv, Conv2dSame) for conv in convs) == same
    assert sum(isinstance(conv, Conv2dSame) for conv in strided) == same


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("size", [(32, 32), (33, 33), (97, 134), (224, 224)])
@pytest.mark.parametrize("batch", [1, 3])
def test_forward_in_eval(variant: Variant, size: tuple[int, int], batch: int) -> None:
    model = build(variant, num_classes=7).eval()
    x = images(batch, *size)
    with torch.inference_mode():
        features, logits = model.forward_features(x), model(x)
    assert features.shape == (batch, model.num_features, *(math.ceil(side / 32) for side in size))
    assert logits.shape == (batch, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("batch", "size"), [(1, 64), (3, 32), (3, 33)])
def test_training_reaches_every_parameter_and_statistic(variant: Variant, batch: int, size: int) -> None:
    torch.manual_seed(0)
    model = build(variant, num_classes=7, dropout=0.0).train()
    statistics = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model(images(batch, size, size)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert [name for name, buffer in model.named_buffers() if torch.equal(buffer, statistics[name])] == []


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(dtype: torch.dtype, mode: str) -> None:
    model = mbv3fast.small(num_classes=7).to(dtype).train(mode == "train")
    with torch.no_grad():
        logits = model(images().to(dtype))
    assert logits.dtype == dtype
    assert logits.isfinite().all()


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_input_channels(channels: int) -> None:
    model = mbv3fast.small(in_chans=channels).eval()
    assert model(images(channels=channels)).shape == (2, 1000)
    assert len(model.transforms().mean) == channels


def test_no_classes_leave_the_embedding() -> None:
    model = mbv3fast.small(num_classes=0).eval()
    x = images()
    assert model.num_classes == 0
    assert model(x).shape == (2, model.head_hidden_size) == (2, 1024)
    torch.testing.assert_close(model(x), model.forward_head(model.forward_features(x), pre_logits=True))


def test_forward_is_features_and_head() -> None:
    model = mbv3fast.small(num_classes=7).eval()
    features = model.forward_features(images())
    embedding = model.forward_head(features, pre_logits=True)
    assert embedding.shape == (2, 1024)
    torch.testing.assert_close(model.classifier[3](embedding), model.forward_head(features))
    torch.testing.assert_close(model(images()), model.forward_head(features))


@pytest.mark.parametrize("classes", [7, 0, 1000])
def test_reset_classifier(classes: int) -> None:
    model = mbv3fast.small(num_classes=5).eval().to(torch.bfloat16)
    model.labels = tuple("abcde")
    embedding = model.forward_head(model.forward_features(images().bfloat16()), pre_logits=True)
    model.reset_classifier(classes)
    outputs = model(images().bfloat16())
    assert outputs.shape == (2, classes or 1024)
    torch.testing.assert_close(outputs, model.get_classifier()(embedding))
    assert (model.num_classes, model.config.num_classes, model.labels) == (classes, classes, None)
    assert not model.get_classifier().training


def test_a_replaced_last_layer_is_described() -> None:
    model = mbv3fast.small().eval()
    model.classifier[3] = nn.Linear(1024, 3)
    assert model(images()).shape == (2, 3)
    assert (model.num_classes, model.description().config.num_classes) == (3, 3)


def test_a_whole_new_classifier_counts_its_classes() -> None:
    model = mbv3fast.small()
    model.classifier = nn.Linear(576, 7)
    assert model.num_classes == 7
    assert model.get_classifier() is model.classifier
    assert model.description().config.num_classes == 7
