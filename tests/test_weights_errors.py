"""State dicts that are refused, with the first thing that is wrong and what to do; and the odd ones that load."""

from __future__ import annotations

import math
import re
import time
from typing import Any

import pytest
import torch
from torch import nn

import mbv3fast
from mbv3fast import WeightsError
from tests.peers import PEERS, ours, trained_state
from tests.states import LARGE, RW, SMALL, TF, TIMM, TIMM_SMALL, Edit, State, alone, having, lacking, same, source_of


def refused(message: str, variant: str = "large", **arguments: Any) -> None:
    with pytest.raises(WeightsError, match=message):
        ours(variant, **arguments)


@pytest.mark.parametrize(
    ("name", "edit", "arguments", "message"),
    [
        (LARGE, lambda _: {"encoder.0.weight": torch.zeros(3)}, {}, r"first key is 'encoder\.0\.weight', and none of "),
        (LARGE, lambda _: {1: torch.zeros(3)}, {}, r"not a MobileNetV3 that we know: the first key is 1"),
        (TIMM, same, {}, r'say source="timm" \(eps 1e-5, symmetric\) or source="timm-tf" \(eps 1e-3, TensorFlow'),
        (TIMM, same, {"bn_eps": 1e-3}, r"timm's plain and tf_ models have the same keys and shapes"),
        (TIMM, same, {"tf_same_padding": True}, r"or give bn_eps= and tf_same_padding="),
        (TIMM, same, {"source": "torchvision"}, r"^source: got 'torchvision', but the keys are those of timm$"),
        (LARGE, same, {"source": "keras"}, r"^source: got 'keras', needs one of seed, torchvision, timm, timm-tf$"),
        ("seed large", same, {"source": "timm"}, r"^source: got 'timm', but the keys are those of seed$"),
        (RW, same, {"source": "timm-tf"}, r"a conv_head without bias is timm's mobilenetv3_rw: use 'timm'"),
    ],
)
def test_whose_weights_they_are(name: str, edit: Edit, arguments: State, message: str) -> None:
    refused(message, weights=edit(trained_state(name)), **arguments)


@pytest.mark.parametrize("variant", ["large", "small"])
def test_minimal_weights_with_torchvisions_names_need_a_source(variant: str) -> None:
    """Ours, converted from timm's, as a plain dict: no squeeze-excite tells whose they are."""
    state = dict(ours(variant, source="timm-tf", minimal=True).state_dict())
    refused(r"without squeeze-excite doesn't show whose eps and padding it has; say source=", variant, weights=state)
    model = ours(variant, weights=state, source="timm-tf")
    assert (model.config.bn_eps, model.config.tf_same_padding) == (1e-3, True)


LAST_OF_LARGE = tuple(f"features.{i}." for i in range(9, 17))
MISSING = [
    (LARGE, lacking("features.4.block.1.1.bias", "features.9."), "features.4.block.1.1.bias"),
    (LARGE, lacking("features.1.block.0.0"), "features.1.block.0.0.weight"),
    (LARGE, lacking("features.15."), "features.15.block.0.0.weight"),
    (LARGE, alone("features.0.0.weight"), "features.0.1.weight"),
    (LARGE, lacking(*LAST_OF_LARGE), "features.9.block.0.0.weight"),
    (LARGE, lacking("classifier.3"), "classifier.3.weight"),
    (TIMM, lacking("bn1.running_var"), "bn1.running_var"),
    (TIMM, lacking("blocks.2.0.se.conv_reduce.weight"), "blocks.2.0.se.conv_reduce.weight"),
    (TIMM, lacking("blocks.2.2."), "blocks.2.2"),
    (TIMM, lacking("blocks.3.", "blocks.5.2."), "blocks.3.0"),
    (TIMM, lacking("blocks.5.2."), "blocks.5.2"),
    (TIMM, lacking("blocks.6."), "blocks.6.0"),
    (TIMM, alone("conv_stem.weight"), "blocks.0.0"),
    (TIMM, lacking("conv_head"), "conv_head.weight"),
    (TIMM, lacking("conv_head.bias"), "conv_head.bias"),
    (TIMM_SMALL, lacking("blocks.5."), "blocks.5.0"),
    ("mobilenetv3_large_150d", lacking("blocks.3.4."), "blocks.3.4"),
    ("seed large", lacking("bottlenecks.3.residual.2.excitation.0.bias"), "bottlenecks.3.residual.2.excitation.0.bias"),
    ("seed small", lacking("fc2"), "fc2.1.weight"),
]


@pytest.mark.parametrize(("name", "edit", "key"), MISSING, ids=lambda value: value if isinstance(value, str) else "")
def test_the_first_missing_key_is_named(name: str, edit: Edit, key: str) -> None:
    state = edit(trained_state(name))
    for source in ({}, source_of(name)):
        refused(f"^weights: {re.escape(key)} is missing", PEERS[name].variant, weights=state, **source)


@pytest.mark.parametrize(
    ("name", "edit", "message"),
    [
        (LARGE, having(features__0__0__weight=torch.zeros(16, 27)), r"\(16, 27\), needs 4 dimensions"),
        (LARGE, having(features__2__block__1__0__weight=torch.zeros(64, 1, 5, 5)), "has a 5x5 kernel, needs 3x3"),
        (LARGE, having(features__2__block__1__0__weight=torch.zeros(64, 1, 5, 3)), r"needs \(64, 1, 3, 3\)"),
        (LARGE, having(features__4__block__1__1__bias=torch.zeros(71)), r"1\.1\.bias has shape \(71,\), needs \(72,\)"),
        (LARGE, having(classifier__3__bias=torch.zeros(10)), r"classifier\.3\.bias has shape \(10,\), needs \(1000,\)"),
        (
            LARGE,
            having(features__4__block__2__fc1__weight=torch.zeros(20, 72, 1, 1)),
            "neither C // 4 nor that rounded",
        ),
        (TIMM, having(conv_head__bias=torch.zeros(9)), r"conv_head\.bias has shape \(9,\), needs \(1280,\)"),
        (
            "seed large",
            having(fc1__0__weight=torch.zeros(1280, 961)),
            r"fc1\.0\.weight has shape .*needs \(1280, 960\)",
        ),
        (
            LARGE,
            having(features__17__0__weight=torch.zeros(1)),
            r"features\.17\.0\.weight belongs to no part of a large",
        ),
        (LARGE, having(aux__weight=torch.zeros(1)), "aux.weight belongs to no part of a large .* torchvision's kind"),
        (TIMM, having(blocks__6__0__conv__bias=torch.zeros(1)), r"0\.conv\.bias belongs to no part .* of timm's kind"),
        (TIMM, having(blocks__7__0__conv__weight=torch.zeros(1)), "8 stages of blocks, a large network has 7"),
        (TIMM, having(blocks__6__1__conv__weight=torch.zeros(1)), r"are no depth multiple of \[1, 2, 3, 4, 2, 3, 1\]"),
        (LARGE, having(classifier__3__bias="zero"), r"^weights: 'classifier\.3\.bias' is a str, needs a tensor$"),
        (LARGE, having(classifier__3__bias=torch.zeros(1000, dtype=torch.int8)), r"classifier\.3\.bias is torch\.int8"),
        (LARGE, having(classifier__3__bias=torch.zeros(1000).to_sparse()), "torch.sparse_coo.* needs dense floating"),
        (LARGE, having(classifier__3__bias=torch.zeros(1000, device="meta")), "on meta; needs dense floating-point"),
        (
            LARGE,
            having(classifier__3__bias=torch.full((1000,), math.nan)),
            r"3\.bias holds numbers that are not fin",
        ),
        (SMALL, having(classifier__3__bias=torch.full((1000,), -math.inf)), r"3\.bias holds numbers that are not fin"),
        (LARGE, having(features__0__1__running_var=torch.full((16,), -1e-3)), r"holds -0\.001, needs variances above"),
        (LARGE, lambda state: {**state, 7: torch.zeros(1)}, "7 belongs to no part of a large MobileNetV3"),
    ],
)
def test_what_does_not_fit_is_named(name: str, edit: Edit, message: str) -> None:
    refused(message, weights=edit(trained_state(name)), **source_of(name))


def test_an_absurd_stage_is_refused_at_once() -> None:
    state = {**trained_state(TIMM), "blocks.3000000.0.conv.weight": torch.zeros(1)}
    start = time.process_time()
    refused("^weights: ", weights=state, source="timm")
    assert time.process_time() - start < 1


def hidden(width: int, first: str, last: str) -> Edit:
    """Another width of the layer before the classifier, by itself consistent."""

    def edit(state: State) -> State:
        before, after = state[f"{first}.weight"], state[f"{last}.weight"]
        return {
            **state,
            f"{first}.weight": before[:1].repeat(width, *[1] * (before.dim() - 1)),
            f"{first}.bias": torch.zeros(width),
            f"{last}.weight": after[:, :1].repeat(1, width),
        }

    return edit


@pytest.mark.parametrize(
    ("name", "edit"),
    [
        (LARGE, hidden(960, "classifier.0", "classifier.3")),
        ("torchvision large 0.75", hidden(1024, "classifier.0", "classifier.3")),
        ("mobilenetv3_large_075", hidden(960, "conv_head", "classifier")),
        (TIMM, hidden(1600, "conv_head", "classifier")),
        ("seed small", hidden(1280, "fc1.0", "fc2.1")),
    ],
)
def test_a_mix_of_widths_is_refused(name: str, edit: Edit) -> None:
    refused(
        "a mix is refused",
        PEERS[name].variant,
        weights=edit(trained_state(name)),
        **source_of(name),
    )


@pytest.mark.parametrize(
    ("name", "variant", "arguments", "message"),
    [
        (SMALL, "large", {}, r"^weights: these belong to mbv3fast\.small\(\), not to large\(\); mbv3fast\.load takes"),
        (LARGE, "small", {}, r"^weights: these belong to mbv3fast\.large\(\), not to small\(\); mbv3fast\.load takes"),
        ("mobilenetv3_small_050", "large", {"source": "timm"}, r"these belong to mbv3fast\.small\(\)"),
        (LARGE, "large", {"se_divisor": 1}, "^se_divisor: got 1, but the weights have 24 of 72$"),
        ("seed large", "large", {"se_divisor": 8}, "^se_divisor: got 8, but the weights have 18 of 72$"),
        (
            LARGE,
            "large",
            {"width_mult": 0.75},
            r"^width_mult: got 0\.75, but the weights have block outputs \(16, 24, ",
        ),
        ("torchvision large 0.75", "large", {"width_mult": 1.0}, r"^width_mult: got 1\.0, but the weights have"),
        (LARGE, "large", {"minimal": True}, "^minimal: got True, but the weights say otherwise$"),
        ("tf_mobilenetv3_large_minimal_100", "large", {"minimal": False, "source": "timm-tf"}, "^minimal: got False, "),
    ],
)
def test_arguments_that_contradict_the_checkpoint(name: str, variant: str, arguments: State, message: str) -> None:
    refused(message, variant, weights=trained_state(name), **arguments)


def test_a_source_that_contradicts_the_metadata() -> None:
    state = PEERS[TF].convert(trained_state(TF)).state_dict()
    refused("source: got 'timm', but", "small", weights=state, source="timm")
    with pytest.raises(WeightsError) as refusal:
        mbv3fast.small(weights=state, source="timm")
    assert "bn_eps=0.001" in str(refusal.value)
    assert "BlockConfig" not in str(refusal.value), "what differs is lost among all blocks"


@pytest.mark.parametrize("name", [RW, "mobilenetv3_small_050", TF, "seed small", "torchvision small 0.5"])
def test_a_source_holds_for_the_weights_and_for_what_we_made_of_them(name: str) -> None:
    model = PEERS[name].convert(trained_state(name))
    assert PEERS[name].convert(model.state_dict()).config == model.config


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (5, "^weights: got int, needs a non-empty state dict$"),
        ({}, "^weights: got dict, needs a non-empty state dict$"),
        ({"state_dict": {}, "epoch": 3}, "^weights: got .*dict, needs a non-empty state dict$"),
        ("DEFALT", "got 'DEFALT', needs a state dict, a path, or one of DEFAULT, IMAGENET1K_V1, IMAGENET1K_V2, digits"),
        ("default", r"got 'default' \(did you mean 'DEFAULT'\?\), needs"),
        ("digits", r"belong to mbv3fast\.small\(\)"),
        (nn.Linear(2, 2), r"^weights: got Linear, needs a non-empty state dict; pass its state_dict\(\)$"),
    ],
)
def test_what_is_no_weights_at_all(given: Any, message: str) -> None:
    refused(message, weights=given)
