"""Read, fit and write weights: ours, torchvision's, timm's, the seed's."""

from __future__ import annotations

import os
from dataclasses import fields
from pathlib import Path
from typing import Any

from mbv3fast.description import Description
from mbv3fast.model import MobileNetV3
from mbv3fast.weights.asbuilt import refuse_rebuilt, require_classifier
from mbv3fast.weights.checkpoint import Checkpoint, read
from mbv3fast.weights.errors import WeightsError
from mbv3fast.weights.export import to_torchvision
from mbv3fast.weights.files import write_file
from mbv3fast.weights.fit import check_values

__all__ = ["Checkpoint", "WeightsError", "load", "read", "save", "to_torchvision"]

_TRAINING_ONLY = ("bn_momentum", "dropout")  # fields in which a checkpoint and a model may differ


def load(model: MobileNetV3, weights: Any, *, source: str | None = None) -> None:
    """Load `weights` (all that `read` takes) into a model of the same architecture.

    Raises WeightsError, with the model left as it was, where they are unreadable or belong to another network.
    """
    require_classifier(model, "load")
    variant = model.config.variant
    checkpoint = read(weights, variant=variant, source=source)
    config = model.description().config
    for field in (f.name for f in fields(config) if f.name not in _TRAINING_ONLY):
        ours, theirs = getattr(config, field), getattr(checkpoint.config, field)
        if ours != theirs:
            if field == "blocks" and len(ours) == len(theirs):
                ours, theirs = next((a, b) for a, b in zip(ours, theirs, strict=True) if a != b)
            raise WeightsError(
                f"weights: made for {field}={theirs}, the model has {ours}; build it with weights= to follow them"
            )
    model.load_state_dict(checkpoint.state)
    model.preprocess = checkpoint.description.preprocess
    model.labels = checkpoint.description.labels


def save(model: MobileNetV3, path: str | os.PathLike[str]) -> None:
    """Write a .safetensors file that `weights=` reads back exactly: tensors, config, preprocessing, labels.

    The file appears whole or not at all. Raises ValueError for another suffix or a missing folder,
    WeightsError where modules were replaced or altered beyond what the description says, or numbers are not finite.
    """
    target = Path(path)
    if target.suffix != ".safetensors":
        raise ValueError(f"path: got {target}, needs the suffix .safetensors")
    if not target.absolute().parent.is_dir():
        raise ValueError(f"path: got {target}, whose folder does not exist")
    require_classifier(model, "save")
    refuse_rebuilt(model, "save")
    description = model.description()
    try:
        Description.from_json(description.to_json())
    except ValueError as error:
        raise WeightsError(f"save: the file could not be read back: {error}") from error
    state = model.state_dict()
    for key, tensor in state.items():
        check_values(key, tensor, description.config.bn_eps)
    write_file(target, state, description)
