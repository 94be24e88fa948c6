"""What travels beside the tensors of a checkpoint: the config, the preprocessing, the labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mbv3fast.config import NetworkConfig
from mbv3fast.preprocess import Preprocess

METADATA_KEY = "mbv3fast"


@dataclass(frozen=True)
class Description:
    """A network's function but for its tensors; stored as JSON in safetensors and state dict metadata.

    unsaid: what of the network `config` doesn't say, so that the tensors belong to no network built by it.
    """

    config: NetworkConfig
    preprocess: Preprocess
    labels: tuple[str, ...] | None = None
    unsaid: str = ""

    def to_json(self) -> str:
        labels = list(self.labels) if self.labels else None
        fields: dict[str, Any] = {
            "config": self.config.to_dict(),
            "preprocess": self.preprocess.to_dict(),
            "labels": labels,
        }
        if self.unsaid:
            fields["unsaid"] = self.unsaid
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Read what `to_json` wrote; ValueError where the text, which may come from anywhere, is not that."""
        try:
            fields = json.loads(text)
            config = NetworkConfig.from_dict(fields["config"])
            preprocess = Preprocess.from_dict(fields["preprocess"])
            if len(preprocess.mean) != config.in_chans:
                raise ValueError(f"mean has {len(preprocess.mean)} numbers for {config.in_chans} channels")
            labels, unsaid = fields["labels"], str(fields.get("unsaid", ""))
            if labels is None:
                return cls(config, preprocess, unsaid=unsaid)
            if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
                raise TypeError("labels are not strings")
            if len(labels) != config.num_classes:
                raise ValueError(f"{len(labels)} labels for {config.num_classes} classes")
            return cls(config, preprocess, tuple(labels), unsaid)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"mbv3fast metadata is damaged: {type(error).__name__}: {error}") from error


def describe(metadata: dict[str, Any], description: Description) -> None:
    """Put `description` into a state dict's per-module metadata, where PyTorch keeps its version numbers."""
    metadata[METADATA_KEY] = description.to_json()


def read_description(state_dict: Mapping[str, Any], prefix: str = "") -> Description | None:
    """The description that a state dict of ours carries, None for anybody else's (or a plain dict copy).

    prefix: of the keys, where wrappers put one before them ("module.").
    """
    metadata = getattr(state_dict, "_metadata", None) or {}
    text = metadata.get(prefix.removesuffix("."), {}).get(METADATA_KEY)
    return None if text is None else Description.from_json(text)
