"""Weights out of this package and back: torchvision's own classes, our files, plain torch.save."""

from __future__ import annotations

import copy
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from torch import Tensor, nn

import mbv3fast
from mbv3fast import Preprocess, WeightsError, weights
from mbv3fast.fast import FusedMobileNetV3
from mbv3fast.model import MobileNetV3
from tests.numerics import by_engine, by_module
from tests.peers import PEERS, TORCHVISION, Peer, noise, ours, trained, trained_state

Build = Callable[[], FusedMobileNetV3]
X = (2, 97, 134)


def converted(name: str, **options: Any) -> FusedMobileNetV3:
    return PEERS[name].convert(trained_state(name), **options)


def fresh(variant: str, **arguments: Any) -> FusedMobileNetV3:
    """Ours from the start, trained."""
    model = ours(variant, **arguments)
    trained(model)
    return model


def torchvisions(model: MobileNetV3, state: dict[str, Tensor], width_mult: float = 1.0) -> nn.Module:
    """torchvision's own class with `state`, loaded strictly, in the dtype of `state`; eval mode."""
    peer = Peer(model.config.variant, 0, "torchvision", width_mult)
    theirs = peer.build(num_classes=model.num_classes).to(state["features.0.0.weight"].dtype)
    theirs.load_state_dict(state, strict=True)
    return theirs.eval()


@pytest.mark.parametrize("peer", TORCHVISION, ids=lambda peer: peer.name)
def test_torchvisions_weights_return_as_they_came(peer: Peer) -> None:
    state = trained_state(peer.name)
    exported = weights.to_torchvision(peer.convert(state))
    assert list(exported) == list(state)
    assert all(torch.equal(exported[key], tensor) for key, tensor in state.items())


@pytest.mark.parametrize(
    ("build", "width_mult"),
    [
        pytest.param(lambda: converted("seed large"), 1.0, id="seed large"),
        pytest.param(lambda: converted("seed small"), 1.0, id="seed small"),
        pytest.param(lambda: converted("mobilenetv3_large_100"), 1.0, id="timm large"),
        pytest.param(lambda: converted("mobilenetv3_small_100"), 1.0, id="timm small"),
        pytest.param(lambda: converted("torchvision large 0.75"), 0.75, id="torchvision large 0.75"),
        pytest.param(lambda: fresh("small", width_mult=0.75), 0.75, id="ours small 0.75"),
        pytest.param(lambda: fresh("large", width_mult=1.25), 1.25, id="ours large 1.25"),
        pytest.param(lambda: fresh("small", num_classes=7), 1.0, id="ours 7 classes"),
        pytest.param(lambda: fresh("small", bn_eps=0.02), 1.0, id="ours eps 0.02"),
    ],
)
def test_torchvisions_class_computes_the_same(build: Build, width_mult: float) -> None:
    model = build().double()
    theirs = torchvisions(model, weights.to_torchvision(model), width_mult)
    x = noise(*X).double()
    with torch.inference_mode():
        exact = model.reference_forward(x)
        torch.testing.assert_close(theirs(x), exact, rtol=0, atol=1e-13 * exact.abs().max().item())


def test_narrow_squeeze_excites_are_padded_with_zeros() -> None:
    model = converted("seed large")
    exported = weights.to_torchvision(model)
    for prefix, own, padded in (("features.4.block.2", 18, 24), ("features.12.block.2", 168, 168)):
        before = model.state_dict()
        for name, axis in (("fc1.weight", 0), ("fc1.bias", 0), ("fc2.weight", 1)):
            got = exported[f"{prefix}.{name}"]
            assert got.shape[axis] == padded
            assert torch.equal(got.narrow(axis, 0, own), before[f"{prefix}.{name}"])
            assert not got.narrow(axis, own, padded - own).any()


def test_variances_near_zero_survive_another_eps() -> None:
    """A channel that training left dead: its exported variance may be negative, its output may not change."""
    model = converted("seed small")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var[::5] = 0
            module.weight.data[::5] *= model.config.bn_eps**0.5
    theirs = torchvisions(model, weights.to_torchvision(model))
    with torch.inference_mode():
        exact = copy.deepcopy(model).double().reference_forward(noise(*X).double())
        torch.testing.assert_close(theirs(noise(*X)).double(), exact, rtol=0, atol=1e-4 * exact.std().item())


def test_the_exported_tensors_are_copies() -> None:
    model = converted("torchvision small 1.0")
    before = copy.deepcopy(model.state_dict())
    for tensor in weights.to_torchvision(model).values():
        tensor.zero_()
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def without_last_layer() -> FusedMobileNetV3:
    model = ours("small")
    model.classifier[3] = nn.Identity()
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        pytest.param(lambda: ours("small", source="timm-tf"), "'same' padding", id="same padding"),
        pytest.param(lambda: ours("small", in_chans=1), "input of 1 channels", id="channels"),
        pytest.param(lambda: ours("small", num_classes=0), "embedding without a classifier", id="no classes"),
        pytest.param(without_last_layer, "embedding without a classifier", id="classifier removed"),
        pytest.param(lambda: ours("large", minimal=True), "variant without squeeze-excite", id="minimal"),
        pytest.param(lambda: converted("mobilenetv3_rw"), "timm's mobilenetv3_rw", id="rw"),
        pytest.param(lambda: converted("mobilenetv3_large_075"), "widths like these", id="timm's widths"),
        pytest.param(lambda: converted("mobilenetv3_large_150d"), "depth|blocks", id="timm's depth"),
    ],
)
def test_what_torchvision_has_not_is_refused(build: Build, message: str) -> None:
    model = build()
    with pytest.raises(WeightsError, match=f"^to_torchvision: torchvision's MobileNetV3 has no .*({message})"):
        weights.to_torchvision(model)


def labelled() -> FusedMobileNetV3:
    """One grey channel, three named classes, its own preprocessing."""
    model = fresh("small", in_chans=1, num_classes=3, width_mult=0.5)
    model.labels = ("cat", "dog", "straße")
    model.preprocess = Preprocess(resize=40, crop=33, mean=(0.1,), std=(0.3,), interpolation="bicubic")
    return model


ROUND_TRIPS = {
    "timm-tf": lambda: converted("tf_mobilenetv3_large_100"),
    "timm-tf minimal": lambda: converted("tf_mobilenetv3_small_minimal_100"),
    "timm deep": lambda: converted("mobilenetv3_large_150d"),
    "timm rw": lambda: converted("mobilenetv3_rw"),
    "torchvision 0.75": lambda: converted("torchvision large 0.75"),
    "seed": lambda: converted("seed small"),
    "no classes": lambda: converted("seed small", num_classes=0),
    "labelled": labelled,
    "unusual": lambda: fresh("small", bn_eps=0.004, tf_same_padding=True, dropout=0.5, bn_momentum=0.3),
}


def save_with_torch(model: FusedMobileNetV3, path: Path) -> None:
    torch.save(model.state_dict(), path)


@pytest.mark.parametrize(("write", "suffix"), [(weights.save, ".safetensors"), (save_with_torch, ".pth")])
@pytest.mark.parametrize("build", [pytest.param(build, id=name) for name, build in ROUND_TRIPS.items()])
def test_a_file_restores_everything(
    build: Build, write: Callable[[FusedMobileNetV3, Path], None], suffix: str, tmp_path: Path
) -> None:
    model = build()
    path = tmp_path / f"model{suffix}"
    write(model, path)
    again = ours(model.config.variant, weights=path)
    assert again.description() == model.description()
    assert again.labels == model.labels
    assert again.transforms() == model.transforms()
    assert list(tmp_path.iterdir()) == [path]
    x = noise(*X, channels=model.config.in_chans)
    assert torch.equal(by_module(again, x)[0], by_module(model, x)[0])
    assert torch.equal(by_engine(again, x)[0], by_engine(model, x)[0])


def test_loading_into_a_model_brings_labels_and_preprocessing(tmp_path: Path) -> None:
    model = labelled()
    weights.save(model, tmp_path / "model.safetensors")
    other = ours("small", in_chans=1, num_classes=3, width_mult=0.5)
    by_engine(other, noise(*X, channels=1))  # an engine of the old weights, which must not stay
    weights.load(other, str(tmp_path / "model.safetensors"))
    assert (other.labels, other.preprocess) == (model.labels, model.preprocess)
    x = noise(*X, channels=1)
    assert torch.equal(by_engine(other, x)[0], by_engine(model, x)[0])


def test_a_channels_last_model_is_saved_as_any_other(tmp_path: Path) -> None:
    model = fresh("small").to(memory_format=torch.channels_last)
    weights.save(model, tmp_path / "model.safetensors")
    again = mbv3fast.small(weights=tmp_path / "model.safetensors").state_dict()
    assert all(torch.equal(again[key], tensor) for key, tensor in model.state_dict().items())


def replace_stem(model: FusedMobileNetV3) -> None:
    model.features[0][0] = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)


def replace_preprocessing(model: FusedMobileNetV3) -> None:
    model.preprocess = Preprocess(mean=(0.5,), std=(0.5,))


def replace_classifier(model: FusedMobileNetV3) -> None:
    model.classifier = nn.Linear(576, 5)


def replace_padding_mode(model: FusedMobileNetV3) -> None:
    model.features[0][0].padding_mode = "reflect"


@pytest.mark.parametrize("edit", [replace_stem, replace_preprocessing, replace_classifier, replace_padding_mode])
def test_no_file_is_written_that_cannot_be_read(edit: Callable[[FusedMobileNetV3], None], tmp_path: Path) -> None:
    """An edited model is either restored or refused before a file of it exists."""
    model, path = ours("small"), tmp_path / "model.safetensors"
    edit(model)
    try:
        weights.save(model, path)
    except ValueError:
        assert list(tmp_path.iterdir()) == []
    else:
        again = mbv3fast.load(path)
        assert again.features[0][0].padding_mode == model.features[0][0].padding_mode
        state = again.state_dict()
        assert all(torch.equal(state[key], tensor) for key, tensor in model.state_dict().items())


def test_other_suffixes_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^path: got .*model\.pth, needs the suffix \.safetensors"):
        weights.save(ours("small"), tmp_path / "model.pth")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    weights.save(ours("small"), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises((OSError, safetensors.SafetensorError)):
            weights.save(ours("small"), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
