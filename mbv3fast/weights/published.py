"""Weights by name: torchvision's published files and timm's on the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mbv3fast.preprocess import Preprocess
from mbv3fast.tables import Variant
from mbv3fast.weights.errors import WeightsError
from mbv3fast.weights.files import first_line, read_file

HUB_PREFIX = "hf-hub:"
_BASE = "https://download.pytorch.org/models/"


@dataclass(frozen=True)
class Published:
    """A file of torchvision's; the hash in its name is checked after a download."""

    url: str
    preprocess: Preprocess


PUBLISHED: dict[Variant, dict[str, Published]] = {
    "large": {
        "IMAGENET1K_V1": Published(_BASE + "mobilenet_v3_large-8738ca79.pth", Preprocess()),
        "IMAGENET1K_V2": Published(_BASE + "mobilenet_v3_large-5c1a4163.pth", Preprocess(resize=232)),
    },
    "small": {"IMAGENET1K_V1": Published(_BASE + "mobilenet_v3_small-047dcff4.pth", Preprocess())},
}
SEGMENTATION = Preprocess(resize=520, crop=None)
LRASPP: dict[str, Published] = {
    "COCO_WITH_VOC_LABELS_V1": Published(_BASE + "lraspp_mobilenet_v3_large-d234d4ea.pth", SEGMENTATION)
}


def resolve_name(name: str, variant: Variant) -> Published | None:
    """The published weights called `name` ("DEFAULT" is the newest), None where nothing is called so."""
    known = PUBLISHED[variant]
    return list(known.values())[-1] if name == "DEFAULT" else known.get(name)


def preprocess_of_file(name: str) -> Preprocess | None:
    """The preprocessing of the published file called `name`, however it came here; None for any other."""
    published = (entry for entries in (*PUBLISHED.values(), LRASPP) for entry in entries.values())
    return next((entry.preprocess for entry in published if entry.url.endswith("/" + name)), None)


def enum_name(weights: Any, variant: Variant) -> str | None:
    """The name of a member of torchvision's weights enums, None for any other object.

    Told by its class's name, since torchvision need not be installed.
    """
    kinds: dict[str, Variant] = {"MobileNet_V3_Large_Weights": "large", "MobileNet_V3_Small_Weights": "small"}
    kind = kinds.get(type(weights).__name__)
    if kind is None:
        return None
    if kind != variant:
        raise WeightsError(f"weights: {weights} belongs to mbv3fast.{kind}(), not to {variant}()")
    return str(weights.name)


def fetch(published: Published) -> Mapping[str, Any]:
    """Download into torch.hub's cache, unless it is there already, and read with weights_only."""
    name = published.url.rsplit("/", 1)[1]
    folder = Path(torch.hub.get_dir(), "checkpoints")
    file = folder / name
    try:
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            hash_prefix = file.stem.rsplit("-", 1)[1]
            torch.hub.download_url_to_file(published.url, str(file), hash_prefix, progress=False)
    except OSError as error:  # URLError is one
        raise WeightsError(
            f"weights: {name} can't be downloaded ({first_line(error)}). Without a network, fetch {published.url} "
            f"elsewhere and pass the file's path as weights=, or put it into {folder}"
        ) from None  # thirty frames of urllib say no more
    except RuntimeError as error:
        raise WeightsError(f"weights: {name} arrived damaged: {first_line(error)}") from error
    return read_file(file)[0]


@dataclass(frozen=True)
class HubModel:
    """A timm model from the hub: tensors, and what its config.json says."""

    state: Mapping[str, Any]
    source: str
    preprocess: Preprocess


def fetch_hub(name: str) -> HubModel:
    """Read "hf-hub:timm/<model>" through huggingface_hub (its cache, its offline switches)."""
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise WeightsError(f"weights: {name} needs huggingface_hub: pip install 'mbv3fast[hub]'") from error
    repository = name.removeprefix(HUB_PREFIX)

    def download(file: str) -> Path:
        try:
            return Path(hf_hub_download(repository, file))
        except (OSError, ValueError, HfHubHTTPError) as error:
            raise WeightsError(
                f"weights: {name} can't be downloaded ({type(error).__name__}: {first_line(error)}). Without a "
                "network, fetch its model.safetensors elsewhere and pass the file's path with "
                'source="timm", or "timm-tf" for a tf_ model'
            ) from None

    source, preprocess = _read_hub_config(download("config.json"), name)
    state, _ = read_file(download("model.safetensors"))
    return HubModel(state, source, preprocess)


def _read_hub_config(path: Path, name: str) -> tuple[str, Preprocess]:
    try:
        fields = json.loads(path.read_text())
        architecture = str(fields["architecture"])
        preprocess = Preprocess.of_timm(fields["pretrained_cfg"])
    except (ValueError, KeyError, TypeError, ArithmeticError, OSError) as error:
        raise WeightsError(f"weights: {name} has no timm config.json ({type(error).__name__}: {error})") from error
    if "mobilenetv3" not in architecture:
        raise WeightsError(f"weights: {name} is a {architecture}, not a MobileNetV3")
    return ("timm-tf" if architecture.startswith("tf_") else "timm"), preprocess
