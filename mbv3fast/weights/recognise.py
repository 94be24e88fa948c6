"""From a state dict's keys and shapes to whose it is and which network it belongs to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from mbv3fast.config import (
    ROWS,
    SOURCES,
    STAGES,
    BlockConfig,
    NetworkConfig,
    SourceTraits,
    Variant,
    WidthRule,
    network,
    squeeze_width,
)
from mbv3fast.weights.errors import WeightsError
from mbv3fast.weights.names import Kind, Layout, pairs

_SIGNATURES: dict[Kind, str] = {
    "torchvision": "features.0.0.weight",
    "timm": "conv_stem.weight",
    "seed": "first_conv.0.weight",
}
_SQUEEZE_MARK: dict[Kind, str] = {"torchvision": ".fc1.", "timm": ".se.", "seed": ".excitation."}
_WIDTHS = sorted((w / 100 for w in range(10, 401)), key=lambda w: (w * 4 % 1 != 0, abs(w - 1)))


def recognise_kind(state: Mapping[str, Tensor]) -> Kind:
    """Whose names these are; WeightsError where nobody's that we know."""
    for kind, key in _SIGNATURES.items():
        if key in state:
            return kind
    first = next(iter(state), None)
    raise WeightsError(
        f"weights: not a MobileNetV3 that we know: the first key is {first!r}, and none of "
        f"{', '.join(_SIGNATURES.values())} (torchvision's and ours, timm's, the seed's stem) is there"
    )


def recognise_layout(state: Mapping[str, Tensor], kind: Kind) -> Layout:
    """Which parts are there. Depth follows the keys for timm, whose stages say what a block's stride is."""
    if kind == "timm":
        lengths = _timm_stages(state)
        variant: Variant = "large" if len(lengths) > 6 else "small"
        count = len(STAGES[variant])
        _check_depth(variant, lengths)
        stages, last_convs = tuple(lengths[:count]), lengths[count]
    else:
        prefix = "features" if kind == "torchvision" else "bottlenecks"
        indices = [int(m[1]) for key in state if (m := re.match(rf"{prefix}\.(\d+)\.", key))]
        variant = "large" if max(indices, default=0) > 12 else "small"
        stages, last_convs = STAGES[variant], 1
    minimal = not any(_SQUEEZE_MARK[kind] in key for key in state)
    squeeze = [row.squeeze_excite and not minimal for row in _rows_by_depth(variant, stages)]
    return Layout(
        variant=variant,
        stages=stages,
        squeeze_excite=tuple(squeeze),
        last_convs=last_convs,
        head_bias=kind != "timm" or "conv_head.bias" in state,
        classifier=kind != "timm" or any(key.startswith("classifier.") for key in state),
    )


def recognise_config(state: Mapping[str, Tensor], kind: Kind, layout: Layout) -> NetworkConfig:
    """The network that the shapes describe, with the seed's eps and padding, which shapes can't say.

    WeightsError names the first tensor that is missing or of a shape that no MobileNetV3 has.
    """
    names = dict(pairs(layout, kind))

    def shape(ours: str) -> tuple[int, ...]:
        if names[ours] not in state:
            raise WeightsError(f"weights: {names[ours]} is missing")
        return tuple(state[names[ours]].shape)

    def width(ours: str, axis: int, rank: int) -> int:
        got = shape(ours)
        if len(got) != rank:
            raise WeightsError(f"weights: {names[ours]} has shape {got}, needs {rank} dimensions")
        return got[axis]

    minimal = not any(layout.squeeze_excite)
    rows = _rows_by_depth(layout.variant, layout.stages)
    starts = {sum(layout.stages[:stage]) for stage in range(len(layout.stages))}
    stem = width("features.0.0.weight", 0, 4)
    blocks: list[BlockConfig] = []
    channels = stem
    for index, row in enumerate(rows):
        block = f"features.{index + 1}.block"
        slot = 1 if index >= layout.stages[0] else 0
        depthwise = f"{block}.{slot}.0.weight"
        kernel, wanted = width(depthwise, 3, 4), 3 if minimal else row.kernel
        if kernel != wanted:
            raise WeightsError(f"weights: {names[depthwise]} has a {kernel}x{kernel} kernel, needs {wanted}x{wanted}")
        has_squeeze = layout.squeeze_excite[index]
        squeeze_rank = 2 if kind == "seed" else 4
        blocks.append(
            BlockConfig(
                in_channels=channels,
                kernel=kernel,
                expanded=width(depthwise, 0, 4),
                out_channels=width(f"{block}.{slot + 1 + has_squeeze}.0.weight", 0, 4),
                squeeze=width(f"{block}.{slot + 1}.fc1.weight", 0, squeeze_rank) if has_squeeze else 0,
                activation="relu" if minimal else row.activation,
                stride=row.stride if index in starts else 1,
                skip=layout.head_bias or index > 0,
                squeeze_activation="relu" if layout.head_bias else row.activation,
            )
        )
        channels = blocks[-1].out_channels
    first_last = len(rows) + 1
    last_convs = [width(f"features.{first_last + i}.0.weight", 0, 4) for i in range(layout.last_convs)]
    return NetworkConfig(
        variant=layout.variant,
        stem=stem,
        blocks=tuple(blocks),
        last_convs=tuple(last_convs),
        hidden=width("classifier.0.weight", 0, 4 if kind == "timm" else 2),
        num_classes=width("classifier.3.weight", 0, 2) if layout.classifier else 0,
        in_chans=width("features.0.0.weight", 1, 4),
        activation="relu" if minimal else "hardswish",
        head_bias=layout.head_bias,
    )


def check_widths(config: NetworkConfig, layout: Layout, rules: tuple[WidthRule, ...]) -> None:
    """Refuse widths that are nobody's: neither rule gives them for any multiplier from 0.1 to 4."""
    for divisor in (1, 8):
        squeezes = [(b.squeeze, squeeze_width(b.expanded, divisor)) for b in config.blocks if b.squeeze]
        if all(got == wanted for got, wanted in squeezes):
            break
    else:
        raise WeightsError("weights: the squeeze-excite widths are neither C // 4 nor that rounded to multiples of 8")
    if not layout.head_bias and divisor == 8:
        raise WeightsError("weights: conv_head.bias is missing")
    for rule in rules:
        for width_mult in _WIDTHS:
            ratio = config.blocks[-1].out_channels / (ROWS[config.variant][-1].out * width_mult)
            if 0.8 < ratio < 1.25 and _same_widths(
                config, network(config.variant, width_mult=width_mult, width_rule=rule), layout
            ):
                return
    raise WeightsError(
        f"weights: the channel widths follow neither {' nor '.join(rules)}'s rule for any width_mult "
        f"(stem {config.stem}, last conv {config.last_convs[-1]}, hidden {config.hidden}); a mix is refused"
    )


def default_traits(kind: Kind, config: NetworkConfig) -> SourceTraits | None:
    """Eps and padding where keys and shapes leave no doubt, None where they do."""
    if kind == "seed":
        return SOURCES["seed"]
    if kind == "timm":
        # Only timm's mobilenetv3_rw has no bias there: eps 1e-3 and symmetric padding.
        return None if config.head_bias else SourceTraits(1, 1e-3, False, "timm")
    squeezes = [block for block in config.blocks if block.squeeze]
    if not squeezes:
        return None
    rounded = all(block.squeeze == squeeze_width(block.expanded, 8) for block in squeezes)
    return SOURCES["torchvision" if rounded else "seed"]


def _same_widths(config: NetworkConfig, other: NetworkConfig, layout: Layout) -> bool:
    if layout.standard:
        ours = [(b.in_channels, b.expanded, b.out_channels) for b in config.blocks]
        if ours != [(b.in_channels, b.expanded, b.out_channels) for b in other.blocks]:
            return False
    return (config.stem, set(config.last_convs), config.hidden) == (other.stem, set(other.last_convs), other.hidden)


def _timm_stages(state: Mapping[str, Tensor]) -> list[int]:
    found = {(int(m[1]), int(m[2])) for key in state if (m := re.match(r"blocks\.(\d+)\.(\d+)\.", key))}
    lengths = [sum(stage == s for stage, _ in found) for s in range(1 + max((s for s, _ in found), default=0))]
    for stage, length in enumerate(lengths):
        for position in range(max(length, 1)):
            if (stage, position) not in found:
                raise WeightsError(f"weights: blocks.{stage}.{position} is missing")
    return lengths if len(lengths) > 5 else lengths + [0] * (6 - len(lengths))


def _check_depth(variant: Variant, lengths: list[int]) -> None:
    """timm deepens a network by one factor, every stage rounded up; anything else is a half network."""
    standard = [*STAGES[variant], 1]
    if len(lengths) != len(standard):
        raise WeightsError(f"weights: got {len(lengths)} stages of blocks, a {variant} network has {len(standard)}")
    for percent in range(100, 305, 5):
        if lengths == [math.ceil(length * percent / 100 - 1e-9) for length in standard]:
            return
    for stage, (got, wanted) in enumerate(zip(lengths, standard, strict=True)):
        if got < wanted:
            raise WeightsError(f"weights: blocks.{stage}.{got} is missing")
    raise WeightsError(f"weights: stages of {lengths} blocks are no depth multiple of {standard}")


def _rows_by_depth(variant: Variant, stages: tuple[int, ...]) -> list:
    """The table's row of each block; a deeper stage repeats its last row, of which kernel and kind matter."""
    rows, begin = [], 0
    for standard, count in zip(STAGES[variant], stages, strict=True):
        stage = ROWS[variant][begin : begin + standard]
        rows += [stage[min(position, standard - 1)] for position in range(count)]
        begin += standard
    return rows
