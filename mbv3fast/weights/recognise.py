"""From a state dict's keys and shapes to whose it is and which network it belongs to."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from mbv3fast.config import (
    SOURCES,
    BlockConfig,
    NetworkConfig,
    SourceTraits,
    WidthRule,
    has_reduced_tail,
    network,
    squeeze_width,
)
from mbv3fast.tables import ROWS, STAGES, Variant
from mbv3fast.weights.errors import WeightsError
from mbv3fast.weights.names import OPTIONAL_TENSOR, Kind, Layout, pairs

_SIGNATURES: dict[Kind, str] = {
    "torchvision": "features.0.0.weight",
    "timm": "conv_stem.weight",
    "seed": "first_conv.0.weight",
}
_SQUEEZE_MARK: dict[Kind, str] = {"torchvision": ".fc1.", "timm": ".se.", "seed": ".excitation."}
# timm's mobilenetv3_rw, the only one whose conv_head has no bias.
RW = SourceTraits(se_divisor=1, bn_eps=1e-3, tf_same_padding=False, width_rule="timm")
_WIDTHS = sorted((w / 100 for w in range(15, 401)), key=lambda w: (w * 4 % 1 != 0, abs(w - 1)))


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
    """Which parts are there. Depth follows the keys for timm, whose stages say what a block's stride is.

    WeightsError names the first block or tensor, in the network's order, that is missing.
    """
    keys = [str(key) for key in state]
    if kind == "timm":
        variant: Variant = "large" if any(key.startswith("blocks.5.0.conv_dw.") for key in keys) else "small"
        lengths = _timm_stages(keys, variant)
        _check_depth(variant, lengths)
        stages, last_convs = tuple(lengths[:-1]), lengths[-1]
    else:
        variant = _variant_by_block(keys, kind)
        stages, last_convs = STAGES[variant], 1
    minimal = not any(_SQUEEZE_MARK[kind] in key for key in keys)
    squeeze = [row.squeeze_excite and not minimal for row in _rows_by_depth(variant, stages)]
    layout = Layout(
        variant=variant,
        stages=stages,
        squeeze_excite=tuple(squeeze),
        last_convs=last_convs,
        head_bias=kind != "timm" or "conv_head.bias" in state,
        classifier=kind != "timm" or any(key.startswith("classifier.") for key in keys),
    )
    for _, name in pairs(layout, kind):
        if name not in state and not name.endswith(OPTIONAL_TENSOR):
            raise WeightsError(f"weights: {name} is missing")
    return layout


def _variant_by_block(keys: list[str], kind: Kind) -> Variant:
    """Only Small's first block has a squeeze-excite; without any, only Large has so many blocks."""
    mark = _SQUEEZE_MARK[kind]
    first = "features.1." if kind == "torchvision" else "bottlenecks.0."
    if any(mark in key for key in keys):
        return "small" if any(key.startswith(first) and mark in key for key in keys) else "large"
    indices = [int(match[1]) for key in keys if (match := re.match(r"\w+\.(\d+)\.", key))]
    return "large" if max(indices, default=0) > 12 else "small"


def recognise_config(state: Mapping[str, Tensor], kind: Kind, layout: Layout) -> NetworkConfig:
    """The network that the shapes describe, with the seed's eps and padding, which shapes can't say.

    WeightsError names the first tensor of a shape that no MobileNetV3 has.
    """
    names = dict(pairs(layout, kind))

    def width(ours: str, axis: int, rank: int) -> int:
        got = tuple(state[names[ours]].shape)
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


def check_widths(config: NetworkConfig, layout: Layout, rules: tuple[WidthRule, ...]) -> WidthRule:
    """The first rule that gives these widths for some multiplier from 0.15 to 4; WeightsError where none does."""
    for divisor in (1, 8):
        squeezes = [(b.squeeze, squeeze_width(b.expanded, divisor)) for b in config.blocks if b.squeeze]
        if all(got == wanted for got, wanted in squeezes):
            break
    else:
        raise WeightsError("weights: the squeeze-excite widths are neither C // 4 nor that rounded to multiples of 8")
    if not layout.head_bias and divisor == 8:
        raise WeightsError("weights: conv_head.bias is missing")
    reduced = has_reduced_tail(config)
    last = ROWS[config.variant][-1].out // (2 if reduced else 1)
    for rule in rules:
        for width_mult in _WIDTHS:
            if not 0.8 < config.blocks[-1].out_channels / (last * width_mult) < 1.25:
                continue
            table = network(config.variant, width_mult=width_mult, width_rule=rule, reduced_tail=reduced)
            if _same_widths(config, table, layout):
                return rule
    raise WeightsError(
        f"weights: the channel widths follow neither {' nor '.join(rules)}'s rule for any width_mult "
        f"(stem {config.stem}, last conv {config.last_convs[-1]}, hidden {config.hidden}); a mix is refused"
    )


def default_traits(kind: Kind, config: NetworkConfig) -> SourceTraits | None:
    """Eps and padding where keys and shapes leave no doubt, None where they do."""
    if kind == "seed":
        return SOURCES["seed"]
    if kind == "timm":
        return None if config.head_bias else RW
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


def _timm_stages(keys: list[str], variant: Variant) -> list[int]:
    """The number of blocks in each of timm's stages, the last of which holds the last convolutions."""
    found = sorted(
        {(int(match[1]), int(match[2])) for key in keys if (match := re.match(r"blocks\.(\d+)\.(\d+)\.", key))}
    )
    lengths = [0] * (len(STAGES[variant]) + 1)
    stage, position = 0, 0
    for block in found:
        if block != (stage, position):
            stage, position = stage + 1, 0
        if block != (stage, position):
            raise WeightsError(f"weights: blocks.{stage}.{position} is missing")
        if stage == len(lengths):
            raise WeightsError(f"weights: got {stage + 1} stages of blocks, a {variant} network has {len(lengths)}")
        lengths[stage] += 1
        position += 1
    return lengths


def _check_depth(variant: Variant, lengths: list[int]) -> None:
    """timm deepens a network by one factor, every stage rounded up; anything else is a half network."""
    standard = [*STAGES[variant], 1]
    depths = [[math.ceil(length * percent / 100 - 1e-9) for length in standard] for percent in range(100, 305, 5)]
    nearest = max(depths, key=lambda depth: sum(got == wanted for got, wanted in zip(lengths, depth, strict=True)))
    for stage, (got, wanted) in enumerate(zip(lengths, nearest, strict=True)):
        if got < wanted:
            raise WeightsError(f"weights: blocks.{stage}.{got} is missing")
    if lengths != nearest:
        raise WeightsError(f"weights: stages of {lengths} blocks are no depth multiple of {standard}")


def _rows_by_depth(variant: Variant, stages: tuple[int, ...]) -> list:
    """The table's row of each block; a deeper stage repeats its last row, of which kernel and kind matter."""
    rows, begin = [], 0
    for standard, count in zip(STAGES[variant], stages, strict=True):
        stage = ROWS[variant][begin : begin + standard]
        rows += [stage[min(position, standard - 1)] for position in range(count)]
        begin += standard
    return rows
