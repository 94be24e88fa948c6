"""Weights from anywhere to one form: our names, our shapes, and everything the network needs to know."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mbv3fast.assets import DIGITS_CHECKPOINT, imagenet_labels
from mbv3fast.config import SOURCES, NetworkConfig, WidthRule
from mbv3fast.description import Description
from mbv3fast.model import MobileNetV3
from mbv3fast.preprocess import Preprocess
from mbv3fast.tables import Variant
from mbv3fast.weights.errors import WeightsError
from mbv3fast.weights.files import read_file, unwrap
from mbv3fast.weights.fit import fit
from mbv3fast.weights.names import Kind, pairs
from mbv3fast.weights.published import (
    HUB_PREFIX,
    PUBLISHED,
    enum_name,
    fetch,
    fetch_hub,
    preprocess_of_file,
    resolve_name,
)
from mbv3fast.weights.recognise import (
    RW,
    check_widths,
    default_traits,
    recognise_config,
    recognise_kind,
    recognise_layout,
)

_OF_KIND: dict[Kind, tuple[str, ...]] = {
    "torchvision": tuple(SOURCES),  # ours too, whatever they were converted from
    "timm": ("timm", "timm-tf"),
    "seed": ("seed",),
}
_TIMM_PREPROCESS = {
    "timm": Preprocess(interpolation="bicubic"),
    "timm-tf": Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3),
}


@dataclass(frozen=True)
class Checkpoint:
    """Tensors by our names and shapes, and the description of their network."""

    state: dict[str, Tensor]
    description: Description
    kind: Kind = "torchvision"  # whose names it came with, ours being torchvision's

    @property
    def config(self) -> NetworkConfig:
        return self.description.config


def read(
    weights: Any,
    *,
    variant: Variant = "large",
    source: str | None = None,
    bn_eps: float | None = None,
    tf_same_padding: bool | None = None,
) -> Checkpoint:
    """Read `weights`: a state dict, a path, a published name, a torchvision enum member or "hf-hub:timm/…".

    variant: whose published weights a name such as "DEFAULT" means; nothing else depends on it.
    source: "seed", "torchvision", "timm" or "timm-tf": whose weights they are, where keys and shapes leave a doubt.
        A state dict of ours carries that itself, but a plain dict copy of it, or a file that safetensors wrote, does
        not, and is taken for torchvision's (or, with SE widths of C // 4, the seed's): say `source` for those.
    bn_eps, tf_same_padding: said outright, these settle the doubt too.

    Raises WeightsError, naming the first offending key, where weights are unreadable, unknown or ambiguous.
    """
    if source is not None and source not in SOURCES:
        raise WeightsError(f"source: got {source!r}, needs one of {', '.join(SOURCES)}")
    raw, description, preprocess, source = _resolve(weights, variant, source)
    state, carried = unwrap(raw)
    said = {"bn_eps": bn_eps, "tf_same_padding": tf_same_padding}
    said = {name: value for name, value in said.items() if value is not None}
    description = description or carried
    if description is None:
        return _recognised(state, source, said, preprocess)
    return _described(state, description, source, said)


def _described(
    state: Mapping[str, Tensor], description: Description, source: str | None, said: dict[str, Any]
) -> Checkpoint:
    """Weights of ours, which say themselves what they are."""
    if description.unsaid:
        needed = "load_state_dict of a network altered alike takes them"
        raise WeightsError(f"weights: these are of an altered network: {description.unsaid}; {needed}")
    _check_source(description.config, source)
    description = replace(description, config=replace(description.config, **said))
    return Checkpoint(_fit(state, "torchvision", description.config, None), description)


def _recognised(
    state: Mapping[str, Tensor], source: str | None, said: dict[str, Any], preprocess: Preprocess | None
) -> Checkpoint:
    """Weights that show what they are by their keys and shapes; `preprocess` is known of published ones."""
    kind = recognise_kind(state)
    if source is not None and source not in _OF_KIND[kind]:
        raise WeightsError(f"source: got {source!r}, but the keys are those of {kind}")
    layout = recognise_layout(state, kind)
    config = recognise_config(state, kind, layout)
    rule = check_widths(config, layout, ("timm",) if kind == "timm" else ("torchvision", "timm"))
    config = replace(config, **_eps_and_padding(kind, config, rule, source, said))
    # What is published, and so has a known preprocessing, was trained on ImageNet.
    labels = imagenet_labels() if preprocess is not None and config.num_classes == 1000 else None
    if preprocess is None and config.in_chans == 3:
        timms = ("timm-tf" if config.tf_same_padding else "timm") if kind == "timm" else None
        preprocess = _TIMM_PREPROCESS.get(source or timms or "")
    described = Description(config, preprocess or Preprocess.default(config.in_chans), labels)
    return Checkpoint(_fit(state, kind, config, pairs(layout, kind)), described, kind)


def _eps_and_padding(
    kind: Kind, config: NetworkConfig, rule: WidthRule, source: str | None, said: dict[str, Any]
) -> dict[str, Any]:
    """What keys and shapes leave open, from them where they leave no doubt, from `source`, or from what was said."""
    # timm's widths under our names: a plain dict of ours, which has lost its description.
    known = default_traits(kind, config) if rule == "torchvision" or kind == "timm" else None
    if source is not None and (known is None or kind == "torchvision"):
        known = SOURCES[source]
    elif source == "timm-tf":
        raise WeightsError("source: got 'timm-tf', but a conv_head without bias is timm's mobilenetv3_rw: use 'timm'")
    if known is not None:
        return {"bn_eps": known.bn_eps, "tf_same_padding": known.tf_same_padding, **said}
    if {"bn_eps", "tf_same_padding"} <= set(said):
        return said
    if kind == "timm":
        raise WeightsError(
            "weights: timm's plain and tf_ models have the same keys and shapes but other batch-norm eps and padding; "
            'say source="timm" (eps 1e-5, symmetric) or source="timm-tf" (eps 1e-3, TensorFlow\'s \'same\'), '
            "or give bn_eps= and tf_same_padding="
        )
    raise WeightsError(
        "weights: a network with timm's widths or without squeeze-excite doesn't show whose eps and padding it has; "
        f"say source= ({', '.join(SOURCES)}), or give bn_eps= and tf_same_padding="
    )


def _resolve(
    weights: Any, variant: Variant, source: str | None
) -> tuple[Any, Description | None, Preprocess | None, str | None]:
    """(state dict, its own description, known preprocessing, source) of whatever `weights` is."""
    name = enum_name(weights, variant) or weights
    if isinstance(name, str):
        published = resolve_name(name, variant)
        if published is not None:
            return fetch(published), None, published.preprocess, source or "torchvision"
        if name.startswith(HUB_PREFIX):
            hub = fetch_hub(name)
            return hub.state, None, hub.preprocess, source or hub.source
        if name == "digits":
            name = str(DIGITS_CHECKPOINT)
        elif not Path(name).exists() and not Path(name).suffix:
            known = ", ".join(["DEFAULT", *PUBLISHED[variant], "digits", HUB_PREFIX + "timm/…"])
            meant = f" (did you mean {name.upper()!r}?)" if resolve_name(name.upper(), variant) else ""
            raise WeightsError(f"weights: got {name!r}{meant}, needs a state dict, a path, or one of {known}")
    if isinstance(name, (str, os.PathLike)):
        state, description = read_file(Path(name))
        return state, description, preprocess_of_file(Path(name).name), source
    return name, None, None, source


def _check_source(config: NetworkConfig, source: str | None) -> None:
    """Refuse a `source` that contradicts what the weights themselves carry."""
    if source is None:
        return
    traits = RW if source == "timm" and not config.head_bias else SOURCES[source]
    if (config.bn_eps, config.tf_same_padding) != (traits.bn_eps, traits.tf_same_padding):
        raise WeightsError(
            f"source: got {source!r}, but the weights themselves say bn_eps={config.bn_eps}, "
            f"tf_same_padding={config.tf_same_padding}"
        )


def check_counts(state: Mapping[str, Tensor], config: NetworkConfig) -> None:
    """Raises WeightsError for a description of more layers than there are tensors, before any are made."""
    for field in ("blocks", "last_convs"):
        count = len(getattr(config, field))
        if count > len(state):
            raise WeightsError(f"weights: {count} {field} are described, but only {len(state)} tensors given")


def _fit(
    state: Mapping[str, Tensor], kind: Kind, config: NetworkConfig, names: list[tuple[str, str]] | None
) -> dict[str, Tensor]:
    """`fit` for a classifier of `config`; names: (ours, theirs), None where they are the same."""
    check_counts(state, config)
    with torch.device("meta"):
        needed = MobileNetV3(config).state_dict()
    theirs = None if names is None else dict(names)
    return fit(state, needed, theirs, config.bn_eps, f"a {config.variant} MobileNetV3 of {kind}'s kind")
