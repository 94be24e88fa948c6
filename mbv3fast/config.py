"""How width, squeeze-excite and source variants derive from the paper's tables. No torch in here."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Set
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from mbv3fast.tables import ACTIVATIONS, HIDDEN, LAST_CONV, ROWS, STAGES, STEM, Activation, Variant, rows

WidthRule = Literal["torchvision", "timm"]
WIDTH_RULES: tuple[WidthRule, ...] = ("torchvision", "timm")


_MOST = 1 << 24  # channels or classes; more is no network but a damaged file


def _count(name: str, value: Any, least: int) -> int:
    """`value`, NumPy's integers too, as an int; ValueError where it is none."""
    try:
        count = operator.index(value)
    except TypeError:
        count = least - 1
    if isinstance(value, bool) or not least <= count <= _MOST:
        raise ValueError(f"{name}: got {value!r}, needs a whole number from {least} to {_MOST:,}")
    return count


def _number(name: str, value: Any, right: Callable[[float], bool], needs: str) -> float:
    """`value` as a float, since other kinds don't survive JSON alike; ValueError unless it is `right`."""
    try:
        number = math.nan if isinstance(value, str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not right(number):
        raise ValueError(f"{name}: got {value!r}, needs a number {needs}")
    return number


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name}: got {value!r}, needs one of {', '.join(map(str, choices))}")


@dataclass(frozen=True)
class BlockConfig:
    """An inverted residual: expand, depthwise, squeeze_excite, project; `squeeze` 0 means no squeeze-excite.

    dilation: of the depthwise. replaced_stride: that of the tables, where dilation took its place and `stride` is 1.
    """

    in_channels: int
    kernel: int
    expanded: int
    out_channels: int
    squeeze: int
    activation: Activation
    stride: int
    skip: bool = True
    squeeze_activation: Activation = "relu"
    dilation: int = 1
    replaced_stride: int = 1

    def __post_init__(self) -> None:
        for field, least in {"in_channels": 1, "expanded": 1, "out_channels": 1, "squeeze": 0, "dilation": 1}.items():
            object.__setattr__(self, field, _count(f"blocks: {field}", getattr(self, field), least))
        _check_choice("blocks: kernel", self.kernel, (3, 5))
        _check_choice("blocks: stride", self.stride, (1, 2))
        _check_choice("blocks: replaced_stride", self.replaced_stride, (1, 2) if self.stride == 1 else (1,))
        _check_choice("blocks: activation", self.activation, ACTIVATIONS)
        _check_choice("blocks: squeeze_activation", self.squeeze_activation, ACTIVATIONS)

    @property
    def has_expand(self) -> bool:
        return self.expanded != self.in_channels

    @property
    def has_residual(self) -> bool:
        return self.skip and self.table_stride == 1 and self.in_channels == self.out_channels

    @property
    def table_stride(self) -> int:
        """What the tables say: a stage begins where it is 2."""
        return self.stride * self.replaced_stride


@dataclass(frozen=True)
class NetworkConfig:
    """Everything that defines a network's function but its weights."""

    variant: Variant
    stem: int
    blocks: tuple[BlockConfig, ...]
    last_convs: tuple[int, ...]
    hidden: int
    num_classes: int = 1000
    in_chans: int = 3
    activation: Activation = "hardswish"
    head_bias: bool = True
    bn_eps: float = 1e-5
    bn_momentum: float = 0.01
    tf_same_padding: bool = False
    dropout: float = 0.2

    def __post_init__(self) -> None:
        _check_choice("variant", self.variant, tuple(ROWS))
        _check_choice("activation", self.activation, ACTIVATIONS)
        if not self.blocks or not self.last_convs:
            raise ValueError(
                f"blocks, last_convs: got {len(self.blocks)} and {len(self.last_convs)}, needs some of each"
            )
        _check_choice("tf_same_padding", self.tf_same_padding, (False, True))
        for field, value in {
            "stem": _count("stem", self.stem, 1),
            "hidden": _count("hidden", self.hidden, 1),
            "last_convs": tuple(_count("last_convs", width, 1) for width in self.last_convs),
            "num_classes": _count("num_classes", self.num_classes, 0),
            "in_chans": _count("in_chans", self.in_chans, 1),
            "bn_eps": _number("bn_eps", self.bn_eps, lambda eps: 0 < eps <= 1, "above 0, at most 1"),
            "bn_momentum": _number("bn_momentum", self.bn_momentum, lambda m: 0 <= m <= 1, "from 0 to 1"),
            "dropout": _number("dropout", self.dropout, lambda p: 0 <= p < 1, "from 0 to below 1"),
            "tf_same_padding": bool(self.tf_same_padding),
        }.items():
            object.__setattr__(self, field, value)

    @property
    def output_stride(self) -> int:
        """Pixels of the input from one of the last map's to the next."""
        return 2 * math.prod(block.stride for block in self.blocks)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> NetworkConfig:
        """Rebuild a config that `to_dict` wrote, also before blocks had a dilation.

        Raises TypeError where a field is missing, unknown or mistyped, ValueError where its value is out of range.
        """
        template = network("small").to_dict()
        _check_fields("config", data, template)
        for block in data["blocks"]:
            _check_fields("config.blocks", block, template["blocks"][0], optional={"dilation", "replaced_stride"})
        blocks = tuple(BlockConfig(**block) for block in data["blocks"])
        return cls(**{**data, "blocks": blocks, "last_convs": tuple(data["last_convs"])})


def _check_fields(name: str, data: Any, template: dict[str, Any], optional: Set[str] = frozenset()) -> None:
    if not isinstance(data, dict) or not template.keys() - optional <= data.keys() <= template.keys():
        raise TypeError(f"{name}: got {data!r}, needs the fields {sorted(template)}")
    for field, example in ((field, template[field]) for field in data):
        kinds = (list, tuple) if isinstance(example, tuple) else (type(example),)
        if type(data[field]) not in kinds:
            raise TypeError(f"{name}.{field}: got {data[field]!r}, needs {type(example).__name__}")


@dataclass(frozen=True)
class SourceTraits:
    """What the weights of one project imply and a state dict doesn't say."""

    se_divisor: int
    bn_eps: float
    tf_same_padding: bool
    width_rule: WidthRule


SOURCES: dict[str, SourceTraits] = {
    "seed": SourceTraits(1, 1e-5, False, "torchvision"),
    "torchvision": SourceTraits(8, 1e-3, False, "torchvision"),
    "timm": SourceTraits(8, 1e-5, False, "timm"),
    "timm-tf": SourceTraits(8, 1e-3, True, "timm"),
}


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round to a multiple of `divisor`, never below 90% of `value` (the rule of the paper's own code)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def squeeze_width(expanded: int, se_divisor: int) -> int:
    """Hidden width of a squeeze-excite: a quarter, rounded to `se_divisor` (1: exactly C // 4)."""
    return make_divisible(expanded // 4, se_divisor)


def network(
    variant: Variant,
    *,
    width_mult: float = 1.0,
    width_rule: WidthRule = "torchvision",
    se_divisor: int = 1,
    minimal: bool = False,
    reduced_tail: bool = False,
    **options: Any,
) -> NetworkConfig:
    """The config of a variant at a width; `options` are NetworkConfig's remaining fields.

    `width_rule` says whose rounding a width other than 1 follows: torchvision's scales every channel of
    the tables, timm's scales outputs and multiplies them by the expansion ratio, keeps the classifier's
    hidden width and, below 0.75, the stem. `minimal` is the paper's variant without squeeze-excite,
    hardswish and 5x5 kernels; `reduced_tail` halves the channels behind stride 16, as section 6.4 does
    for segmentation. Raises ValueError that names the argument that is none of these.
    """
    _check_choice("variant", variant, tuple(ROWS))
    _check_choice("width_rule", width_rule, WIDTH_RULES)
    width_mult = _number("width_mult", width_mult, lambda width: 0 < width <= 100, "above 0, at most 100")
    if se_divisor not in (1, 8):
        raise ValueError(f"se_divisor: got {se_divisor}, needs 1 (exactly C // 4) or 8 (rounded to multiples of 8)")
    se_divisor = int(se_divisor)
    timm = width_rule == "timm"

    def scale(channels: float) -> int:
        return int(channels) if width_mult == 1 else make_divisible(channels * width_mult)

    stem = STEM if timm and width_mult < 0.75 else scale(STEM)
    blocks: list[BlockConfig] = []
    in_table, width = STEM, stem
    for row in rows(variant, reduced_tail):
        ratio = round(row.expanded / in_table, 2)
        expanded = make_divisible(width * ratio) if timm and width_mult != 1 else scale(row.expanded)
        blocks.append(
            BlockConfig(
                in_channels=width,
                kernel=3 if minimal else row.kernel,
                # Without an expansion in the table, the depthwise works on whatever comes in.
                expanded=width if row.expanded == in_table else expanded,
                out_channels=scale(row.out),
                squeeze=squeeze_width(expanded, se_divisor) if row.squeeze_excite and not minimal else 0,
                activation="relu" if minimal else row.activation,
                stride=row.stride,
            )
        )
        in_table, width = row.out, scale(row.out)
    last_conv, hidden = (channels[variant] // (2 if reduced_tail else 1) for channels in (LAST_CONV, HIDDEN))
    return NetworkConfig(
        variant=variant,
        stem=stem,
        blocks=tuple(blocks),
        last_convs=(scale(last_conv) if timm else 6 * width,),
        hidden=hidden if timm else scale(hidden),
        activation="relu" if minimal else "hardswish",
        **options,
    )


def has_reduced_tail(config: NetworkConfig) -> bool:
    """Whether the last stage is narrower than in the tables, beside the one before it."""
    before = next((block.in_channels for block in reversed(config.blocks) if block.table_stride > 1), 0)
    table = ROWS[config.variant]
    ratio = table[-1].out / table[-1 - STAGES[config.variant][-1]].out
    return config.blocks[-1].out_channels < 0.75 * ratio * before  # a half, but for rounding


def with_overrides(config: NetworkConfig, **fields: Any) -> NetworkConfig:
    """`config` with each field that isn't None replaced."""
    return replace(config, **{name: value for name, value in fields.items() if value is not None})
