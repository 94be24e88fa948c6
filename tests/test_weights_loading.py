"""Loading into a model, which stays as it was where it can't be; and the odd state dicts that do load."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import mbv3fast
from mbv3fast import WeightsError, weights
from mbv3fast.fast import FusedMobileNetV3
from tests.peers import PEERS, ours, trained_state
from tests.states import LARGE, SMALL, TF, TIMM_SMALL, Edit, having, lacking, same, source_of


def bits(model: FusedMobileNetV3) -> tuple[Any, ...]:
    tensors = {key: (tensor.clone(), tensor.data_ptr()) for key, tensor in model.state_dict().items()}
    return tensors, model.preprocess, model.labels, model.config


def assert_untouched(model: FusedMobileNetV3, before: tuple[Any, ...]) -> None:
    after = bits(model)
    assert after[1:] == before[1:]
    for key, (tensor, pointer) in before[0].items():
        assert torch.equal(after[0][key][0], tensor), key
        assert after[0][key][1] == pointer, key


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (LARGE, same, "made for variant=large, the model has small"),
        ("seed small", same, "made for blocks=BlockConfig.*squeeze=4.*the model has BlockConfig.*squeeze=8"),
        (TF, same, r"made for bn_eps=0\.001, the model has 1e-05"),
        ("torchvision small 0.5", same, "made for stem=8, the model has 16; build it with weights= to follow them"),
        (TIMM_SMALL, having(classifier__weight=torch.zeros(5, 1024), classifier__bias=torch.zeros(5)), "num_classes=5"),
        (TIMM_SMALL, lacking("classifier.bias"), "classifier.bias is missing"),
        (TIMM_SMALL, having(classifier__bias=torch.zeros(9)), r"classifier\.bias has shape \(9,\), needs \(1000,\)"),
        (TIMM_SMALL, having(classifier__scale=torch.zeros(9)), "classifier.scale belongs to no part"),
    ],
)
def test_load_refuses_before_it_touches_the_model(name: str, edit: Edit, message: str) -> None:
    model = PEERS[TIMM_SMALL].convert(trained_state(TIMM_SMALL))
    model.labels = tuple(map(str, range(1000)))
    before = bits(model)
    with pytest.raises(WeightsError, match=message):
        weights.load(model, edit(trained_state(name)), **source_of(name))
    assert_untouched(model, before)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    ("key", "value"),
    [("classifier.3.bias", 5), ("classifier.3.bias", torch.zeros(1000, device="meta")), ("conv_stem.weight", None)],
)
def test_load_state_dict_refuses_before_it_touches_the_model(key: str, value: Any, assign: bool) -> None:
    model = PEERS[SMALL].convert(trained_state(SMALL))
    before = bits(model)
    altered = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match=re.escape(key)):
        model.load_state_dict({**altered, key: value}, assign=assign)
    assert_untouched(model, before)


def ours_of_timms() -> FusedMobileNetV3:
    return PEERS[TF].convert(trained_state(TF))


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "state_dict": lambda model: {"state_dict": model.state_dict(), "epoch": 3},
    "model": lambda model: {"model": model.state_dict(), "optimizer": {}},
    "model_state_dict": lambda model: {"model_state_dict": model.state_dict()},
    "DataParallel": lambda model: nn.DataParallel(model).state_dict(),
    "compile": lambda model: torch.compile(model).state_dict(),
    "DataParallel of compile": lambda model: nn.DataParallel(torch.compile(model)).state_dict(),
    "compile of DataParallel": lambda model: torch.compile(nn.DataParallel(model)).state_dict(),
    "compile in a checkpoint": lambda model: {"model": torch.compile(model).state_dict()},
}


@pytest.mark.parametrize("wrap", [pytest.param(wrap, id=name) for name, wrap in WRAPPERS.items()])
@pytest.mark.parametrize("from_file", [False, True])
def test_wrapped_state_dicts_load(wrap: Callable[[nn.Module], Any], from_file: bool, tmp_path: Path) -> None:
    """torchvision's, and ours of another project's, whose eps and padding no tensor shows."""
    theirs = PEERS[SMALL].build()
    theirs.load_state_dict(trained_state(SMALL))
    for model, config in (
        (theirs, PEERS[SMALL].convert(trained_state(SMALL)).config),
        (m := ours_of_timms(), m.config),
    ):
        given = wrap(model)
        if from_file:
            torch.save(given, tmp_path / "checkpoint.pth")
            given = tmp_path / "checkpoint.pth"
        loaded = ours("small", weights=given)
        assert loaded.config == config
        assert all(torch.equal(loaded.state_dict()[key], tensor) for key, tensor in model.state_dict().items())


def test_batch_counters_may_be_absent() -> None:
    """PyTorch counts batches since 0.4.1; the published files of that time have no counters."""
    state = {key: value for key, value in trained_state(SMALL).items() if "num_batches_tracked" not in key}
    loaded = ours("small", weights=state).state_dict()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in state.items())
    assert not loaded["features.0.1.num_batches_tracked"]


def test_load_takes_large_or_small_as_they_are() -> None:
    for name in (LARGE, "seed small"):
        state: dict[str, Tensor] = trained_state(name)
        assert mbv3fast.load(state).config == PEERS[name].convert(state).config


def test_what_could_not_be_read_back_is_not_saved(tmp_path: Path) -> None:
    model = mbv3fast.small(num_classes=2)
    with pytest.raises(ValueError, match=r"path: got .*nowhere.*, whose folder does not exist"):
        weights.save(model, tmp_path / "nowhere" / "model.safetensors")
    with torch.no_grad():
        model.classifier[3].bias[1] = float("nan")
    with pytest.raises(WeightsError, match=r"classifier\.3\.bias holds numbers that are not finite"):
        weights.save(model, tmp_path / "model.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_to_torchvisions_small_negative_variances_load() -> None:
    """A variance of 0 under eps 1e-5 is one of -0.00099 under torchvision's 1e-3."""
    model = mbv3fast.small(num_classes=2)
    model.features[0][1].running_var.zero_()
    state = weights.to_torchvision(model)
    assert state["features.0.1.running_var"].max() < 0
    mbv3fast.small(weights=state)


def test_an_averaged_models_state_dict_loads() -> None:
    model = ours_of_timms()
    averaged = AveragedModel(model)
    loaded = ours("small", weights=averaged.state_dict())
    assert loaded.config == model.config
    assert torch.equal(loaded.classifier[3].weight, model.classifier[3].weight)


def test_float8_weights_load() -> None:
    state = mbv3fast.small(num_classes=2).state_dict()
    narrow = {key: t.to(torch.float8_e5m2) if t.is_floating_point() else t for key, t in state.items()}
    loaded = mbv3fast.small(weights=narrow, source="seed").state_dict()
    assert torch.equal(loaded["classifier.3.weight"], narrow["classifier.3.weight"].float())


def test_a_model_on_meta_is_not_saved(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is on meta, it has no data"):
        weights.save(mbv3fast.small().to("meta"), tmp_path / "model.safetensors")


def set_on(name: str, value: Any) -> Callable[[FusedMobileNetV3], None]:
    return lambda model: setattr(model, name, value)


@pytest.mark.parametrize(
    "edit",
    [
        set_on("classifier", nn.Sequential()),
        set_on("classifier", nn.Linear(576, 2)),
        set_on("labels", np.array(["a", "b"])),
        set_on("labels", [0, 1]),
        set_on("labels", ("a\tb", "\ud800")),
        set_on("preprocess", None),
        set_on("preprocess", mbv3fast.Preprocess(mean=(0.5,), std=(0.5,))),
        lambda model: model.classifier.append(nn.Unflatten(1, (1, 2))),
        lambda model: setattr(model.classifier[3], "out_features", (1, 2)),
    ],
)
def test_every_model_loads_its_own_state_dict(edit: Callable[[FusedMobileNetV3], None]) -> None:
    model = mbv3fast.small(num_classes=2)
    edit(model)
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.load_state_dict(model.state_dict())
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
