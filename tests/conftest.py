"""What the tests share: the peers' packages, randomised networks, real photographs."""

from __future__ import annotations

import functools
import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

import mbv3fast

torch.set_num_threads(1)  # two pytest workers share two cores


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


@pytest.fixture(scope="session")
def torchvision() -> ModuleType:
    return peer("torchvision")


@pytest.fixture(scope="session")
def timm() -> ModuleType:
    peer("torchvision")
    return peer("timm")


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm random statistics and affine weights, every bias a random value; eval mode."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None
                assert module.running_var is not None
                module.running_mean.copy_(uniform(module.running_mean, -0.3, 0.3))
                module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
                module.weight.copy_(uniform(module.weight, 0.7, 1.3))
                module.bias.copy_(uniform(module.bias, -0.3, 0.3))
            elif isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
                module.bias.copy_(uniform(module.bias, -0.5, 0.5))
    return model.eval()


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A file of a Small whose predictions differ from image to image: calibrated on the photographs, logits centred."""
    torch.manual_seed(0)
    model = mbv3fast.small(se_divisor=8, bn_momentum=1.0)
    with torch.no_grad():
        x = torch.stack([model.transforms()(Image.open(path)) for path in sorted(photos.glob("*.*g"))])
        model(x)
        model.classifier[3].weight.mul_(100)
        model.classifier[3].bias.sub_(model.eval()(x).mean(0))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    mbv3fast.weights.save(model, path)
    return path


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's two photographs and crops of them, twelve in all, one in a subfolder."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        image = Image.fromarray(pixels)
        image.save(folder / f"{name}.jpg")
        for i in range(5):
            target = folder / "more" if i == 0 else folder
            image.crop((60 * i, 20 * i, 60 * i + 300, 20 * i + 250)).save(target / f"{name}-{i}.png")
    return folder
