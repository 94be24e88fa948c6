"""Everybody else's MobileNetV3, with weights that let every part of the network show in its output."""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

import mbv3fast
from mbv3fast.fast import FusedFeatureExtractor, FusedMobileNetV3
from tests.networks import calibrate, randomise
from tests.seed_model import SeedMobileNetV3


@functools.cache
def _without_torchvision_ops() -> torch.library.Library:
    """Declare the two ops that torchvision's Python code expects of its compiled half.

    The published torchvision wheel beside a CPU-only torch has no compiled half; its models don't need it.
    """
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


@functools.cache
def peer(name: str) -> ModuleType:
    """torchvision or timm, imported."""
    try:
        return importlib.import_module(name)
    except RuntimeError:
        _without_torchvision_ops()
        return importlib.import_module(name)


@dataclass(frozen=True)
class Peer:
    """A network of another project; `parameters` were counted there."""

    name: str
    parameters: int
    source: str
    width_mult: float = 1.0

    @property
    def variant(self) -> str:
        return "large" if "large" in self.name or self.name == "mobilenetv3_rw" else "small"

    def build(self, **options: Any) -> nn.Module:
        """With fresh weights; `options` are the project's own."""
        if self.source == "seed":
            return SeedMobileNetV3(self.variant)
        torchvision = peer("torchvision")
        if self.source == "torchvision":
            factory = getattr(torchvision.models, f"mobilenet_v3_{self.variant}")
            return factory(width_mult=self.width_mult, **options)
        return peer("timm").create_model(self.name, **options)

    def convert(self, state: dict[str, Tensor], **options: Any) -> FusedMobileNetV3 | FusedFeatureExtractor:
        """Our model with this peer's weights; eval mode."""
        return ours(self.variant, weights=state, **{"source": self.source, **options})


def _torchvision(variant: str, width_mult: float, parameters: int) -> Peer:
    return Peer(f"torchvision {variant} {width_mult}", parameters, "torchvision", width_mult)


TORCHVISION = (
    _torchvision("large", 1.0, 5_483_032),
    _torchvision("large", 0.75, 3_377_576),
    _torchvision("large", 0.5, 1_734_576),
    _torchvision("large", 1.25, 8_164_744),
    _torchvision("small", 1.0, 2_542_856),
    _torchvision("small", 0.75, 1_653_920),
    _torchvision("small", 0.5, 917_264),
    _torchvision("small", 1.25, 3_644_912),
)
TIMM = (
    Peer("mobilenetv3_large_075", 3_993_528, "timm"),
    Peer("mobilenetv3_large_100", 5_483_032, "timm"),
    Peer("mobilenetv3_large_150d", 14_622_320, "timm"),
    Peer("mobilenetv3_rw", 5_479_918, "timm"),
    Peer("mobilenetv3_small_050", 1_593_224, "timm"),
    Peer("mobilenetv3_small_075", 2_041_872, "timm"),
    Peer("mobilenetv3_small_100", 2_542_856, "timm"),
    Peer("tf_mobilenetv3_large_075", 3_993_528, "timm-tf"),
    Peer("tf_mobilenetv3_large_100", 5_483_032, "timm-tf"),
    Peer("tf_mobilenetv3_large_minimal_100", 3_924_288, "timm-tf"),
    Peer("tf_mobilenetv3_small_075", 2_041_872, "timm-tf"),
    Peer("tf_mobilenetv3_small_100", 2_542_856, "timm-tf"),
    Peer("tf_mobilenetv3_small_minimal_100", 2_044_736, "timm-tf"),
)
SEED = (Peer("seed large", 5_481_198, "seed"), Peer("seed small", 2_537_238, "seed"))
PEERS = {each.name: each for each in (*TORCHVISION, *TIMM, *SEED)}


def ours(variant: str, **arguments: Any) -> FusedMobileNetV3 | FusedFeatureExtractor:
    """`mbv3fast.large` or `small`, in eval mode."""
    return getattr(mbv3fast, variant)(**arguments).eval()


def trained(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights of equal gain in every layer, and batch norms that hold real statistics; eval mode.

    The projects' own initialisations let a signal fade layer by layer, until the biases alone decide.
    """
    generator = torch.Generator().manual_seed(seed)
    randomise(model, seed)
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    with torch.no_grad():
        for layer in layers:
            gain = layer.weight[0].numel() ** -0.5
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * gain)
    calibrate(model, torch.randn((8, layers[0].weight.shape[1], 96, 96), generator=generator))
    return model


@functools.cache
def trained_state(name: str) -> dict[str, Tensor]:
    """The state dict of the peer `name`, trained; shared, so copy before you edit."""
    return trained(PEERS[name].build()).state_dict()


def noise(batch: int, height: int, width: int, seed: int = 1, channels: int = 3) -> Tensor:
    """Normalised pixels, [batch, channels, height, width]."""
    return torch.randn((batch, channels, height, width), generator=torch.Generator().manual_seed(seed))


def picture(width: int = 301, height: int = 517) -> Image.Image:
    """Random pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def assert_same_pixels(got: Tensor, theirs: Tensor) -> None:
    assert got.dtype == theirs.dtype
    torch.testing.assert_close(got, theirs, rtol=0, atol=1e-6)
