"""The tables, the two rules of width, and what derives from them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mbv3fast.config import (
    SOURCES,
    BlockConfig,
    NetworkConfig,
    make_divisible,
    network,
    squeeze_width,
    with_overrides,
)
from mbv3fast.pyramid import feature_levels
from mbv3fast.tables import ROWS, STAGES, Variant

VARIANTS: tuple[Variant, ...] = ("large", "small")
WIDTHS = (0.25, 0.35, 0.5, 0.75, 1.0, 1.25, 2.0)
# (C, C / 4, C / 4 to a multiple of 8) of each squeeze-excite of the tables.
SQUEEZES = {
    "large": [(72, 18, 24), *[(120, 30, 32)] * 2, (480, 120, 120), *[(672, 168, 168)] * 2, *[(960, 240, 240)] * 2],
    "small": [
        *[(16, 4, 8), (96, 24, 24), (240, 60, 64), (240, 60, 64), (120, 30, 32)],
        *[(144, 36, 40), (288, 72, 72), (576, 144, 144), (576, 144, 144)],
    ],
}


@given(value=st.floats(1, 4000), divisor=st.sampled_from([1, 4, 8, 16]))
def test_make_divisible_keeps_its_promise(value: float, divisor: int) -> None:
    rounded = make_divisible(value, divisor)
    assert rounded % divisor == 0
    assert rounded >= max(divisor, 0.9 * value)
    assert rounded <= max(divisor, value + divisor)


def test_make_divisible_is_torchvisions(torchvision: ModuleType) -> None:
    theirs = torchvision.models._utils._make_divisible
    values = [step / 8 for step in range(1, 8000)]
    assert [make_divisible(value) for value in values] == [theirs(value, 8) for value in values]


@pytest.mark.parametrize("variant", VARIANTS)
def test_squeeze_widths(variant: Variant) -> None:
    for divisor, column in ((1, 1), (8, 2)):
        blocks = [block for block in network(variant, se_divisor=divisor).blocks if block.squeeze]
        assert [(b.expanded, b.squeeze) for b in blocks] == [(row[0], row[column]) for row in SQUEEZES[variant]]


@given(st.integers(4, 4000))
def test_squeeze_width_of_divisor_one_is_a_plain_quarter(expanded: int) -> None:
    assert squeeze_width(expanded, 1) == expanded // 4


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_torchvisions_rule_of_width(torchvision: ModuleType, variant: Variant, width: float) -> None:
    conf = torchvision.models.mobilenetv3._mobilenet_v3_conf
    settings, last_channel = conf(f"mobilenet_v3_{variant}", width_mult=width)
    config = network(variant, width_mult=width)
    theirs = [(s.input_channels, s.kernel, s.expanded_channels, s.out_channels, s.stride) for s in settings]
    assert [(b.in_channels, b.kernel, b.expanded, b.out_channels, b.stride) for b in config.blocks] == theirs
    assert [bool(b.squeeze) for b in config.blocks] == [s.use_se for s in settings]
    assert [b.activation == "hardswish" for b in config.blocks] == [s.use_hs for s in settings]
    assert (config.stem, config.last_convs, config.hidden) == (
        settings[0].input_channels,
        (6 * settings[-1].out_channels,),
        last_channel,
    )


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_timms_rule_of_width(timm: ModuleType, variant: Variant, width: float) -> None:
    generate = timm.models.mobilenetv3._gen_mobilenet_v3
    theirs = generate(f"mobilenetv3_{variant}_100", width)
    config = network(variant, width_mult=width, width_rule="timm", se_divisor=8)
    blocks = [block for stage in theirs.blocks[:-1] for block in stage]
    assert [b.expanded for b in config.blocks] == [b.conv_dw.in_channels for b in blocks]
    squeezes = [b.se.conv_reduce.out_channels if hasattr(b.se, "conv_reduce") else 0 for b in blocks]
    assert [b.squeeze for b in config.blocks] == squeezes
    projections = [getattr(b, "conv_pwl", None) or b.conv_pw for b in blocks]
    assert [b.out_channels for b in config.blocks] == [conv.out_channels for conv in projections]
    assert config.stem == theirs.conv_stem.out_channels
    assert config.last_convs == (theirs.blocks[-1][0].conv.out_channels,)
    assert config.hidden == theirs.conv_head.out_channels


@pytest.mark.parametrize("variant", VARIANTS)
def test_minimal_has_neither_squeeze_excite_nor_hardswish_nor_5x5(variant: Variant) -> None:
    config, plain = network(variant, minimal=True), network(variant)
    assert {(b.squeeze, b.activation, b.kernel) for b in config.blocks} == {(0, "relu", 3)}
    assert config.activation == "relu"
    widths = [[(b.expanded, b.out_channels, b.stride) for b in c.blocks] for c in (config, plain)]
    assert widths[0] == widths[1]


@pytest.mark.parametrize(
    ("variant", "levels"),
    [
        ("large", [(1, 16, 2), (3, 24, 4), (6, 40, 8), (12, 112, 16), (16, 960, 32)]),
        ("small", [(0, 16, 2), (1, 16, 4), (3, 24, 8), (8, 48, 16), (12, 576, 32)]),
    ],
)
def test_feature_levels(variant: Variant, levels: list[tuple[int, int, int]]) -> None:
    assert [dataclasses.astuple(level) for level in feature_levels(network(variant))] == levels


@pytest.mark.parametrize("variant", VARIANTS)
def test_stages_begin_where_the_stride_or_the_width_changes(variant: Variant) -> None:
    assert sum(STAGES[variant]) == len(ROWS[variant])
    begins = {sum(STAGES[variant][:stage]) for stage in range(len(STAGES[variant]))}
    strided = {index for index, row in enumerate(ROWS[variant]) if row.stride == 2}
    assert strided <= begins


@pytest.mark.parametrize(
    ("block", "expand", "residual"),
    [
        (BlockConfig(16, 3, 16, 16, 0, "relu", 1), False, True),
        (BlockConfig(16, 3, 64, 24, 0, "relu", 1), True, False),
        (BlockConfig(24, 3, 72, 24, 0, "relu", 2), True, False),
        (BlockConfig(24, 3, 72, 24, 0, "relu", 1), True, True),
        (BlockConfig(16, 3, 16, 16, 0, "relu", 1, skip=False), False, False),
    ],
)
def test_what_a_block_has(block: BlockConfig, expand: bool, residual: bool) -> None:
    assert (block.has_expand, block.has_residual) == (expand, residual)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("options", [{}, {"minimal": True}, {"width_mult": 0.5, "in_chans": 1, "num_classes": 0}])
def test_a_config_survives_json(variant: Variant, options: dict[str, Any]) -> None:
    config = network(variant, **options)
    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem": "16"}, r"config\.stem: got '16', needs int"),
        ({"bn_eps": 1}, r"config\.bn_eps: got 1, needs float"),
        ({"tf_same_padding": 0}, r"config\.tf_same_padding: got 0, needs bool"),
        ({"last_convs": 960}, r"config\.last_convs: got 960, needs tuple"),
        ({"surprise": 1}, r"config: got .* needs the fields"),
        ({"blocks": [{}]}, r"config\.blocks: got \{\}, needs the fields"),
        ({"blocks": [1]}, r"config\.blocks: got 1, needs the fields"),
    ],
)
def test_a_damaged_config_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        NetworkConfig.from_dict({**network("small").to_dict(), **change})


def test_a_config_without_a_field_is_refused() -> None:
    data = network("small").to_dict()
    del data["hidden"]
    with pytest.raises(TypeError, match="needs the fields"):
        NetworkConfig.from_dict(data)


@pytest.mark.parametrize("width", [0, -1.0, float("nan")])
def test_a_width_must_be_positive(width: float) -> None:
    with pytest.raises(ValueError, match=r"width_mult: got .*, needs a number above 0"):
        network("large", width_mult=width)


@pytest.mark.parametrize("divisor", [0, 2, 16])
def test_se_divisor_is_one_or_eight(divisor: int) -> None:
    with pytest.raises(ValueError, match=rf"se_divisor: got {divisor}, needs 1 .* or 8"):
        network("large", se_divisor=divisor)


def test_overrides_replace_what_is_given() -> None:
    config = network("small")
    assert with_overrides(config, num_classes=0, bn_eps=None) == replace(config, num_classes=0)


def test_configs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        network("small").stem = 8  # type: ignore[misc]


def test_sources_differ_in_what_no_state_dict_says() -> None:
    traits = {name: (t.se_divisor, t.bn_eps, t.tf_same_padding, t.width_rule) for name, t in SOURCES.items()}
    assert traits == {
        "seed": (1, 1e-5, False, "torchvision"),
        "torchvision": (8, 1e-3, False, "torchvision"),
        "timm": (8, 1e-5, False, "timm"),
        "timm-tf": (8, 1e-3, True, "timm"),
    }


def test_numpys_integers_survive_json_too() -> None:
    config = network("small")
    blocks = tuple(replace(block, expanded=np.int32(block.expanded)) for block in config.blocks)
    config = replace(config, hidden=np.int64(1024), last_convs=(np.int64(576),), blocks=blocks)
    assert NetworkConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == network("small")


@pytest.mark.parametrize(("argument", "value"), [("variant", "medium"), ("width_rule", "keras")])
def test_unknown_names_are_refused(argument: str, value: str) -> None:
    with pytest.raises(ValueError, match=f"{argument}: got '{value}', needs one of"):
        network(**{"variant": "small", argument: value})  # type: ignore[arg-type]
