"""Weights of LR-ASPP, torchvision's and ours, which have the same names."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mbv3fast.config import NetworkConfig
from mbv3fast.description import Description
from mbv3fast.lraspp import LRASPP
from mbv3fast.preprocess import Preprocess
from mbv3fast.weights import published
from mbv3fast.weights.checkpoint import Checkpoint, check_counts
from mbv3fast.weights.errors import WeightsError
from mbv3fast.weights.files import read_file, unwrap
from mbv3fast.weights.fit import fit

_ENUM = "LRASPP_MobileNet_V3_Large_Weights"
_LAST = "classifier.low_classifier.weight"
# Of Pascal VOC (Everingham et al. 2010), in the order of its indices.
VOC_LABELS = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)


def read_lraspp(weights: Any, config: NetworkConfig) -> Checkpoint:
    """Read a state dict, a path, a published name or torchvision's enum member, for networks of `config`.

    What state dicts of ours say of themselves, and the number of classes, come before what `config` says.
    Raises WeightsError, naming the first offending key, where weights are unreadable or belong to another network.
    """
    raw, description, known = _resolve(weights)
    state, carried = unwrap(raw)
    description = description or carried
    if _LAST not in state or state[_LAST].dim() != 4:
        first = next(iter(state))
        raise WeightsError(f"weights: no LR-ASPP network, {_LAST} is missing; the first key is {first!r}")
    if description is None:
        config = replace(config, num_classes=state[_LAST].shape[0])
        labels = VOC_LABELS if known is not None and config.num_classes == len(VOC_LABELS) else None
        description = Description(config, known or published.SEGMENTATION, labels)
    check_counts(state, description.config)
    try:
        with torch.device("meta"):
            needed = LRASPP(description.config).state_dict()
    except ValueError as error:
        raise WeightsError(f"weights: what they say of themselves is no LR-ASPP network: {error}") from error
    fitted = fit(state, needed, None, description.config.bn_eps, "LR-ASPP on a MobileNetV3-Large")
    return Checkpoint(fitted, description)


def _resolve(weights: Any) -> tuple[Any, Description | None, Preprocess | None]:
    """(state dict, its own description, its preprocessing if it is published) of whatever `weights` is."""
    name = weights.name if type(weights).__name__ == _ENUM else weights
    if isinstance(name, str):
        name = next(iter(published.LRASPP)) if name == "DEFAULT" else name
        if name in published.LRASPP:
            found = published.LRASPP[name]
            return published.fetch(found), None, found.preprocess
        if not Path(name).exists() and not Path(name).suffix:
            known = ", ".join(["DEFAULT", *published.LRASPP])
            raise WeightsError(f"weights: got {name!r}, needs a state dict, a path, or one of {known}")
    if isinstance(name, (str, os.PathLike)):
        state, description = read_file(Path(name))
        return state, description, published.preprocess_of_file(Path(name).name)
    return name, None, None
