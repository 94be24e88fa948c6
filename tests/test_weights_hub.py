"""timm's weights from the Hugging Face hub: source and transforms out of config.json, and life without the hub."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor

import mbv3fast
from mbv3fast import Preprocess, WeightsError
from mbv3fast.fast import FusedMobileNetV3
from tests.peers import PEERS, assert_same_pixels, noise, ours, picture, trained_state

Publish = Callable[..., str]


@pytest.fixture
def hub(timm: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Publish:
    """publish(architecture, state, **changes of the config's fields): the name under which the hub then has it."""
    repositories: dict[str, Path] = {}

    def download(repository: str, filename: str) -> str:
        path = repositories[repository] / filename
        if not path.exists():
            raise LocalEntryNotFoundError(f"{repository} has no {filename}")
        return str(path)

    def publish(architecture: str, state: dict[str, Tensor] | None = None, /, **changes: Any) -> str:
        folder = tmp_path / architecture
        folder.mkdir()
        model = timm.create_model(architecture)
        timm.models._hub.save_config_for_hf(model, str(folder / "config.json"))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        if state is not None:
            safetensors.torch.save_file(state, folder / "model.safetensors")
        repositories[f"timm/{architecture}.tag"] = folder
        return f"hf-hub:timm/{architecture}.tag"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return publish


@pytest.mark.parametrize(
    "architecture",
    [
        "mobilenetv3_large_075",
        "mobilenetv3_large_150d",
        "mobilenetv3_rw",
        "mobilenetv3_small_100",
        "tf_mobilenetv3_large_100",
        "tf_mobilenetv3_small_minimal_100",
    ],
)
def test_the_hubs_models_are_timms(timm: ModuleType, hub: Publish, architecture: str) -> None:
    """`test_weights_peers` has shown that the network named by source computes what timm's does."""
    peer, state = PEERS[architecture], trained_state(architecture)
    model = ours(peer.variant, weights=hub(architecture, state))
    named = peer.convert(state)
    assert model.config == named.config
    with torch.inference_mode():
        assert torch.equal(model(noise(1, 64, 64)), named(noise(1, 64, 64)))
    theirs = timm.create_model(architecture)
    settings = timm.data.resolve_data_config({}, model=theirs)
    transform = timm.data.create_transform(**settings, is_training=False)
    for size in ((301, 517), (640, 427)):
        assert_same_pixels(model.transforms()(picture(*size)), transform(picture(*size)))


def by_source(architecture: str) -> FusedMobileNetV3:
    return PEERS[architecture].convert(trained_state(architecture))


def by_source_with_our_names(architecture: str) -> FusedMobileNetV3:
    return PEERS[architecture].convert(dict(by_source(architecture).state_dict()))


def by_arguments(architecture: str) -> FusedMobileNetV3:
    config = by_source(architecture).config
    said = {"bn_eps": config.bn_eps, "tf_same_padding": config.tf_same_padding}
    return ours(config.variant, weights=trained_state(architecture), **said)


@pytest.mark.parametrize("architecture", ["mobilenetv3_small_100", "tf_mobilenetv3_small_100"])
@pytest.mark.parametrize("build", [by_source, by_source_with_our_names, by_arguments])
def test_transforms_are_those_of_timms_plain_or_tf_weights(
    timm: ModuleType, architecture: str, build: Callable[[str], FusedMobileNetV3]
) -> None:
    """Without a config.json, whatever says which they are."""
    settings = timm.data.resolve_data_config({}, model=timm.create_model(architecture))
    transform = timm.data.create_transform(**settings, is_training=False)
    assert_same_pixels(build(architecture).transforms()(picture()), transform(picture()))


def test_an_argument_overrides_the_hubs_source(hub: Publish) -> None:
    name = hub("mobilenetv3_small_050", trained_state("mobilenetv3_small_050"))
    model = mbv3fast.small(weights=name, bn_eps=1e-3, in_chans=1)
    assert model.config.bn_eps == 1e-3
    assert model.transforms() == Preprocess(mean=(0.5,), std=(0.5,))


def test_other_architectures_are_refused_before_their_tensors_are_fetched(hub: Publish) -> None:
    name = hub("mobilenetv3_small_050", None, architecture="resnet50")
    with pytest.raises(WeightsError, match=f"^weights: {name} is a resnet50, not a MobileNetV3$"):
        mbv3fast.small(weights=name)


@pytest.mark.parametrize(
    "changes",
    [
        {"pretrained_cfg": None},
        {"pretrained_cfg": {"input_size": [3, 224, 224]}},
        {
            "pretrained_cfg": {
                "input_size": [3, 224, 224],
                "crop_pct": 0,
                "mean": [0.5] * 3,
                "std": [0.5] * 3,
                "interpolation": "bicubic",
            }
        },
    ],
    ids=["none", "incomplete", "no crop"],
)
def test_a_config_json_of_another_form(hub: Publish, changes: dict[str, Any]) -> None:
    name = hub("mobilenetv3_small_050", trained_state("mobilenetv3_small_050"), **changes)
    with pytest.raises(WeightsError, match=f"^weights: {name} has no timm config.json"):
        mbv3fast.small(weights=name)


class NotThereError(HfHubHTTPError):
    """What the hub answers, without the response that its own class wants."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)


def unreachable(error: Exception) -> Callable[..., str]:
    def download(*_: Any, **__: Any) -> str:
        raise error

    return download


@pytest.mark.parametrize(
    "error",
    [
        LocalEntryNotFoundError("Cannot reach https://huggingface.co\nand no file is cached"),
        ConnectionError("network is unreachable"),
        TimeoutError(),
        ValueError("Repo id must be in the form 'repo_name'"),
        NotThereError("404 Client Error"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_without_the_hub_the_file_to_pass_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", unreachable(error))
    with pytest.raises(
        WeightsError,
        match=rf"^weights: hf-hub:timm/tf_x can't be downloaded \({type(error).__name__}.*model\.safetensors elsewhere "
        r"and pass the file's path with source=\"timm\", or \"timm-tf\" for a tf_ model$",
    ) as refusal:
        mbv3fast.small(weights="hf-hub:timm/tf_x")
    assert str(error).partition("\n")[0] in str(refusal.value)


def test_without_huggingface_hub_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"hf-hub:timm/x needs huggingface_hub: pip install 'mbv3fast\[hub\]'"):
        mbv3fast.small(weights="hf-hub:timm/x")
