"""Networks whose batch norms hold real statistics, and inputs for them. Shared and cached: copy before you edit.

In a freshly initialised network the wrong bias or a missing residual may vanish in the noise;
in these, `test_mutations` shows, nothing does.
"""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from PIL import Image
from torch import Tensor, nn

import mbv3fast
from mbv3fast import Preprocess
from mbv3fast.assets import DIGITS_SAMPLE
from mbv3fast.config import BlockConfig, network
from mbv3fast.fast import FusedFeatureExtractor, FusedMobileNetV3, build

TILE = 8
PHOTOGRAPH_SIZE = 128


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


@functools.cache
@torch.inference_mode(False)
def trained_small() -> FusedMobileNetV3:
    """The Small that the package carries, trained on handwritten digits; eval mode."""
    return mbv3fast.small(weights="digits").eval()


@functools.cache
@torch.inference_mode(False)
def digit_tiles() -> Tensor:
    """The sheet's 40 digits as `trained_small` reads them, [40, 3, 64, 64]: image i shows the digit i % 10."""
    transform = trained_small().transforms()
    with Image.open(DIGITS_SAMPLE) as sheet:
        corners = [(x, y) for y in range(0, sheet.height, TILE) for x in range(0, sheet.width, TILE)]
        return torch.stack([transform(sheet.crop((x, y, x + TILE, y + TILE))) for x, y in corners])


@functools.cache
@torch.inference_mode(False)
def photographs(count: int, size: int = PHOTOGRAPH_SIZE, seed: int = 0) -> Tensor:
    """Random square crops of scikit-learn's two photographs, [count, 3, size, size]."""
    from sklearn.datasets import load_sample_images  # which takes a second to import

    images = [Image.fromarray(image) for image in load_sample_images().images]
    transform = Preprocess(resize=size, crop=size)
    generator = torch.Generator().manual_seed(seed)

    def crop(image: Image.Image) -> Tensor:
        side = int(torch.randint(size, min(image.size) + 1, (), generator=generator))
        left, top = (int(torch.randint(0, extent - side + 1, (), generator=generator)) for extent in image.size)
        return transform(image.crop((left, top, left + side, top + side)))

    return torch.stack([crop(images[i % len(images)]) for i in range(count)])


@functools.cache
@torch.inference_mode(False)
def calibrated_large() -> FusedMobileNetV3:
    """A seeded Large with random biases whose batch norms hold the statistics of photographs; eval mode.

    Its linear layers are widened so that the photographs, not the last biases, decide the logits.
    """
    torch.manual_seed(0)
    model = mbv3fast.large()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
    randomise(model)
    calibrate(model, photographs(8, seed=1))
    return model


@functools.cache
@torch.inference_mode(False)
def short_small() -> FusedMobileNetV3:
    """A Small of two blocks, which have all that blocks have; calibrated. For what takes long a layer."""
    torch.manual_seed(0)
    whole = network("small", num_classes=10)
    other = BlockConfig(16, kernel=5, expanded=64, out_channels=16, squeeze=16, activation="hardswish", stride=1)
    model = build(replace(whole, blocks=(whole.blocks[0], other)))
    assert isinstance(model, FusedMobileNetV3)
    model.labels = tuple("0123456789")
    randomise(model)
    calibrate(model, photographs(8, seed=1))
    return model


@functools.cache
@torch.inference_mode(False)
def calibrated_features() -> FusedFeatureExtractor:
    """A feature extractor with `calibrated_large`'s weights."""
    model = mbv3fast.large(features_only=True).eval()
    model.features.load_state_dict(calibrated_large().features.state_dict())
    return model


@functools.cache
@torch.inference_mode(False)
def dilated_features() -> FusedFeatureExtractor:
    """The last two maps of an output stride of 16, by `calibrated_large`'s weights."""
    model = mbv3fast.large(features_only=True, output_stride=16, out_indices=(3, 4)).eval()
    model.features.load_state_dict(calibrated_large().features.state_dict())
    return model


def calibrate(model: nn.Module, x: Tensor) -> None:
    """Set every batch norm's running statistics to those of the batch `x`; eval mode."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    model.train()
    with torch.no_grad():
        model(x)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.eval()
