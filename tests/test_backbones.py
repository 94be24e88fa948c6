"""Backbones of other tasks: dilated tails and reduced ones, beside the projects that have them."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mbv3fast
from mbv3fast import WeightsError
from mbv3fast.config import NetworkConfig, network
from mbv3fast.pyramid import dilated, feature_levels
from mbv3fast.tables import Variant
from mbv3fast.weights import save, to_torchvision
from tests.numerics import assert_close, assert_engine_agrees
from tests.peers import noise, trained

VARIANTS: tuple[Variant, ...] = ("large", "small")


def ours(variant: str, **arguments: Any) -> Any:
    return getattr(mbv3fast, variant)(**arguments).eval()


@torch.inference_mode()
def run(model: nn.Module, x: Tensor) -> Any:
    return model(x)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("reduced_tail", "is_dilated"), [(False, True), (True, False), (True, True)])
def test_torchvisions_tails(torchvision: ModuleType, variant: Variant, reduced_tail: bool, is_dilated: bool) -> None:
    build = getattr(torchvision.models, f"mobilenet_v3_{variant}")
    theirs = trained(build(reduced_tail=reduced_tail, dilated=is_dilated))
    model = ours(variant, weights=theirs.state_dict(), output_stride=16 if is_dilated else None)
    x = noise(2, 97, 129)
    assert model.config.output_stride == (16 if is_dilated else 32)
    assert_engine_agrees(model, x)
    assert_close(run(model, x), run(theirs, x))
    fresh = ours(variant, source="torchvision", reduced_tail=reduced_tail, output_stride=model.config.output_stride)
    fresh.load_state_dict(theirs.state_dict())
    assert_close(run(fresh, x), run(theirs, x))
    back = build(reduced_tail=reduced_tail, dilated=is_dilated).eval()
    back.load_state_dict(to_torchvision(model))
    assert_close(run(back, x), run(theirs, x))


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize(
    ("name", "source"), [("mobilenetv3_large_100", "timm"), ("tf_mobilenetv3_small_100", "timm-tf")]
)
def test_timms_output_strides(timm: ModuleType, name: str, source: str, output_stride: int) -> None:
    whole = trained(timm.create_model(name))
    theirs = timm.create_model(name, features_only=True, output_stride=output_stride).eval()
    state = whole.state_dict()
    theirs.load_state_dict({key: state[key] for key in theirs.state_dict()})
    variant = "large" if "large" in name else "small"
    model = ours(variant, weights=state, source=source, features_only=True, output_stride=output_stride)
    assert model.feature_info.reduction() == theirs.feature_info.reduction()
    assert model.feature_info.channels() == theirs.feature_info.channels()
    x = noise(2, 97, 129)
    assert_engine_agrees(model, x)
    for got, wanted in zip(run(model, x), run(theirs, x), strict=True):
        assert_close(got, wanted)


@pytest.mark.parametrize("variant", VARIANTS)
def test_timms_dilation_computes_between_the_pixels_what_there_was(variant: Variant) -> None:
    """Which is what dilation in place of stride is for: of weights that were trained without it."""
    torch.manual_seed(0)
    state = trained(getattr(mbv3fast, variant)(source="timm")).state_dict()
    x = noise(1, 65, 97)
    plain, dense = (
        ours(variant, source="timm", features_only=True, out_indices=(4,), output_stride=stride) for stride in (32, 16)
    )
    for model in (plain, dense):
        model.load_state_dict({key: state[key] for key in model.state_dict()})
    for model in (plain, dense):  # a mean over other pixels is another mean
        for block in model.features:
            excite = getattr(block, "squeeze_excite", None)
            if excite is not None:
                nn.init.zeros_(excite.fc2.weight)
    (before,), (after,) = run(plain, x), run(dense, x)
    assert_close(after[:, :, ::2, ::2], before)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("output_stride", [8, 16, 32])
@pytest.mark.parametrize("from_stride", [True, False])
def test_strides_and_dilations(variant: Variant, output_stride: int, from_stride: bool) -> None:
    plain = network(variant)
    config = dilated(plain, output_stride, from_stride=from_stride)
    assert config.output_stride == output_stride
    levels, before = feature_levels(config), feature_levels(plain)
    assert [level.stride for level in levels] == [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]
    assert [(level.index, level.channels) for level in levels] == [(level.index, level.channels) for level in before]
    assert max(block.dilation for block in config.blocks) == 32 // output_stride
    assert dilated(config, 32, from_stride=from_stride) == plain
    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_a_description_from_before_dilations_is_read() -> None:
    fields = network("small").to_dict()
    for block in fields["blocks"]:
        del block["dilation"], block["replaced_stride"]
    assert NetworkConfig.from_dict(fields) == network("small")


def test_a_dilated_model_is_saved_and_read(tmp_path: Path) -> None:
    model = trained(ours("small", output_stride=16, reduced_tail=True))
    save(model, tmp_path / "small.safetensors")
    again = mbv3fast.load(tmp_path / "small.safetensors").eval()
    assert again.config == model.config
    x = noise(1, 64, 64)
    assert torch.equal(run(again, x), run(model, x))
    plain = ours("small", weights=tmp_path / "small.safetensors", output_stride=32)
    assert plain.config.output_stride == 32
    assert not torch.allclose(run(plain, x), run(model, x), rtol=1e-2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output_stride": 4}, r"output_stride: got 4, needs one of 8, 16, 32"),
        ({"output_stride": "16"}, r"output_stride: got '16', needs one of 8, 16, 32"),
        ({"weights": "digits", "reduced_tail": True}, r"reduced_tail: got True, but the weights say otherwise"),
        ({"weights": "digits", "output_stride": 12}, r"output_stride: got 12, needs one of 8, 16, 32"),
    ],
)
def test_arguments_that_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mbv3fast.small(**arguments)


def test_to_torchvision_refuses_dilations_of_timms_kind() -> None:
    with pytest.raises(WeightsError, match="dilations as in timm"):
        to_torchvision(ours("small", source="timm", output_stride=16))
