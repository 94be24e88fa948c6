"""What the model refuses, and that the message says why: arguments, inputs, state dicts that don't fit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mbv3fast
from mbv3fast.config import network
from mbv3fast.model import MobileNetV3

SHAPE = (2, 3, 64, 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": -1}, r"num_classes: got -1, needs a whole number from 0"),
        ({"in_chans": 0}, r"in_chans: got 0, needs a whole number from 1"),
        ({"num_classes": "10"}, r"num_classes: got '10', needs a whole number from 0"),
        ({"in_chans": True}, r"in_chans: got True, needs a whole number from 1"),
        ({"width_mult": 0.0}, r"width_mult: got 0\.0, needs a number above 0"),
        ({"width_mult": "1"}, r"width_mult: got '1', needs a number above 0"),
        ({"bn_eps": "small"}, r"bn_eps: got 'small', needs a number above 0"),
        ({"bn_momentum": [0.1]}, r"bn_momentum: got \[0\.1\], needs a number from 0 to 1"),
        ({"dropout": 1.0}, r"dropout: got 1\.0, needs a number from 0 to below 1"),
        ({"tf_same_padding": "False"}, r"tf_same_padding: got 'False', needs one of False, True"),
        ({"se_divisor": 4}, r"se_divisor: got 4, needs 1"),
        ({"source": "keras"}, r"source: got 'keras', needs one of seed, torchvision, timm, timm-tf"),
        ({"out_indices": (0,)}, r"out_indices: needs features_only=True"),
        ({"features_only": True, "out_indices": (5,)}, r"out_indices: got \(5,\), needs levels from 0 to 4"),
        ({"features_only": True, "out_indices": (-6,)}, r"out_indices: got \(-6,\), needs levels from 0 to 4"),
        ({"features_only": True, "out_indices": 2}, r"out_indices: got 2, needs levels from 0 to 4"),
        ({"features_only": True, "out_indices": (1.0,)}, r"out_indices: got \(1\.0,\), needs levels from 0 to 4"),
        ({"features_only": True, "out_indices": ()}, r"out_indices: got \(\), needs levels from 0 to 4"),
    ],
)
@pytest.mark.parametrize("variant", ["large", "small"])
def test_arguments_that_are_refused(variant: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(mbv3fast, variant)(**arguments)


def test_a_negative_reset_is_refused_and_changes_nothing() -> None:
    model = mbv3fast.small(num_classes=5)
    last = model.get_classifier()
    with pytest.raises(ValueError, match="num_classes: got -2"):
        model.reset_classifier(-2)
    assert model.get_classifier() is last
    assert model.num_classes == 5


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(3, 64, 64), r"x: got shape \(3, 64, 64\), needs 4 dimensions"),
        (torch.zeros(2, 4, 64, 64), r"x: got 4 channels in shape \(2, 4, 64, 64\), needs 3$"),
        (torch.zeros(2, 64, 64, 3), r"x: got 64 channels in shape .*, needs 3; the layout is NCHW"),
        (torch.zeros(0, 3, 64, 64), r"x: got an empty batch \(0, 3, 64, 64\), needs N >= 1"),
        (torch.zeros(2, 3, 31, 64), r"x: got height 31, width 64, needs at least 32"),
        (torch.zeros(2, 3, 64, 31), r"x: got height 64, width 31, needs at least 32"),
        (
            torch.zeros(SHAPE, dtype=torch.float16),
            r"x: got dtype torch\.float16, the model's weights are torch\.float32",
        ),
        (torch.zeros(SHAPE, dtype=torch.int32), r"x: got dtype torch\.int32, .* are torch\.float32"),
        (torch.zeros(2, 64, 64, 4, dtype=torch.uint8), r"x: got 64 channels in shape \(2, 64, 64, 4\), needs 3"),
        (torch.zeros(2, 64, 31, 3, dtype=torch.uint8), r"x: got height 64, width 31, needs at least 32"),
        (torch.zeros(SHAPE, device="meta"), r"x: is on meta, the model on cpu"),
    ],
)
@pytest.mark.parametrize("features_only", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_inputs_that_are_refused(x: Tensor, message: str, features_only: bool, training: bool) -> None:
    model = mbv3fast.small(features_only=features_only).train(training)
    with torch.inference_mode(), pytest.raises(ValueError, match=message):
        model(x)


@pytest.mark.parametrize("x", [np.zeros(SHAPE, np.float32), [[1.0]], None])
@pytest.mark.parametrize("features_only", [False, True])
def test_what_is_no_tensor_is_refused(x: Any, features_only: bool) -> None:
    model = mbv3fast.small(features_only=features_only).eval()
    for call in (model, model.explain):
        with pytest.raises(TypeError, match=rf"x: got {type(x).__name__}, needs a tensor \[N, C, H, W\]"):
            call(x)


def test_the_parts_of_the_forward_check_their_input_too() -> None:
    model = mbv3fast.small().eval()
    for forward in (model.forward_features, model.reference_forward):
        with pytest.raises(ValueError, match="needs 3; the layout is NCHW"):
            forward(torch.zeros(2, 64, 64, 3))


def test_a_replaced_stem_may_see_other_channels_than_the_input() -> None:
    model = mbv3fast.small().eval()
    model.features[0] = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 16, 3, padding=1))
    assert model(torch.zeros(SHAPE)).shape == (2, 1000)


def without(key: str, state: dict[str, Any]) -> dict[str, Any]:
    del state[key]
    return state


def misfits() -> dict[str, tuple[dict[str, Any], str]]:
    """State dicts that a plain `small()` refuses, each with the message."""
    plain, rounded = mbv3fast.small(), mbv3fast.small(se_divisor=8)
    return {
        "missing": (
            without("features.0.0.weight", dict(plain.state_dict())),
            r"features\.0\.0\.weight is missing; other projects' names load through `weights=`",
        ),
        "unknown": ({**plain.state_dict(), "extra": torch.zeros(1)}, r"extra is not a key of this model"),
        "shape": (
            dict(mbv3fast.small(num_classes=10).state_dict()),
            r"classifier\.3\.weight has shape \(10, 1024\), the model needs \(1000, 1024\)$",
        ),
        "squeeze": (
            dict(rounded.state_dict()),
            r"features\.1\.block\.1\.fc1\.weight has shape \(8, 16, 1, 1\), the model needs \(4, 16, 1, 1\); "
            r"the squeeze-excite widths differ: se_divisor=1 is the seed's .* 8 torchvision's and timm's",
        ),
        "eps": (
            mbv3fast.small(bn_eps=1e-3).state_dict(),
            r"these weights belong to bn_eps=0\.001, the model has 1e-05; build it with weights=",
        ),
        "padding": (
            mbv3fast.small(tf_same_padding=True).state_dict(),
            r"these weights belong to tf_same_padding=True, the model has False",
        ),
    }


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("case", ["missing", "unknown", "shape", "squeeze", "eps", "padding"])
def test_a_misfit_is_refused_before_anything_is_copied(case: str, assign: bool) -> None:
    state, message = misfits()[case]
    model = mbv3fast.small()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(RuntimeError, match="load_state_dict: " + message):
        model.load_state_dict(state, assign=assign)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_equal_shapes_with_another_activation_are_refused() -> None:
    config = network("small", minimal=True)
    state = MobileNetV3(replace(config, activation="hardswish")).state_dict()
    with pytest.raises(RuntimeError, match="belong to activation=hardswish, the model has relu"):
        mbv3fast.small(minimal=True).load_state_dict(state)


def test_a_loose_load_takes_what_fits() -> None:
    model, other = mbv3fast.small(), mbv3fast.small()
    result = model.load_state_dict(without("features.0.0.weight", dict(other.state_dict())), strict=False)
    assert result.missing_keys == ["features.0.0.weight"]
    assert torch.equal(model.classifier[3].weight, other.classifier[3].weight)


def uncounted(state: dict[str, Any]) -> dict[str, Any]:
    """Without the counters of batches, in place, so that the metadata stays."""
    for key in [key for key in state if key.endswith("num_batches_tracked")]:
        del state[key]
    return state


def test_batch_counters_may_be_absent_as_pytorch_allows() -> None:
    """A plain dict, and a state dict of batch norms of version 1, have none; from version 2 on they are needed."""
    model, other = mbv3fast.small(), mbv3fast.small()
    old = uncounted(other.state_dict())
    with pytest.raises(RuntimeError, match=r"features\.0\.1\.num_batches_tracked is missing"):
        model.load_state_dict(old)
    for metadata in old._metadata.values():  # type: ignore[attr-defined]
        metadata["version"] = 1
    for state in (old, dict(old)):
        with torch.no_grad():
            model.classifier[3].weight.zero_()
        model.load_state_dict(state)
        assert torch.equal(model.classifier[3].weight, other.classifier[3].weight)


def test_hooks_that_rewrite_a_state_dict_are_left_to_do_so() -> None:
    model, other = mbv3fast.small(), mbv3fast.small()

    def rename(_: nn.Module, state: dict[str, Any], *__: Any) -> None:
        state["classifier.3.bias"] = state.pop("classifier.3.offset")

    model.register_load_state_dict_pre_hook(rename)
    state = dict(other.state_dict())
    state["classifier.3.offset"] = state.pop("classifier.3.bias") + 1
    model.load_state_dict(state)
    assert torch.equal(model.classifier[3].bias, other.classifier[3].bias + 1)


def test_a_feature_extractors_state_dict_says_what_its_tensors_cannot() -> None:
    state = mbv3fast.small(features_only=True, bn_eps=1e-3).state_dict()
    with pytest.raises(RuntimeError, match=r"these weights belong to bn_eps=0\.001, the model has 1e-05"):
        mbv3fast.small(features_only=True).load_state_dict(state)


def test_a_hook_does_not_hide_another_eps() -> None:
    model = mbv3fast.small(bn_eps=1e-3)
    model.classifier[3].register_load_state_dict_pre_hook(lambda *_: None)
    with pytest.raises(RuntimeError, match=r"these weights belong to bn_eps=1e-05, the model has 0\.001"):
        model.load_state_dict(mbv3fast.small().state_dict())


class Counting(nn.Linear):
    """A user's layer with state that is no tensor."""

    def get_extra_state(self) -> dict[str, int]:
        return {"count": 3}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state


def test_extra_state_and_old_counters_load() -> None:
    model = mbv3fast.small()
    model.classifier[3] = Counting(1024, 1000)
    state = model.state_dict()
    state["features.0.1.num_batches_tracked"] = torch.tensor([7])
    model.load_state_dict(state)
    assert model.classifier[3].seen == {"count": 3}
    assert model.features[0][1].num_batches_tracked == 7


@pytest.mark.parametrize("given", ["model.pth", nn.Identity()])
def test_what_is_no_state_dict_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match=f"load_state_dict: got {type(given).__name__}, needs a state dict"):
        mbv3fast.small().load_state_dict(given)


def test_reset_classifier_needs_a_number() -> None:
    model = mbv3fast.small()
    with pytest.raises(ValueError, match="num_classes: got None, needs a whole number"):
        model.reset_classifier(None)  # type: ignore[arg-type]
    assert model.num_classes == 1000


def test_numpys_numbers_are_numbers() -> None:
    model = mbv3fast.small(se_divisor=np.int64(8), num_classes=np.int32(5), bn_eps=np.float32(1e-3))
    model.load_state_dict(model.state_dict())
    assert model.config.blocks[0].squeeze == 8
