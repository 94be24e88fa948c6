"""Files that the package carries: the trained digits checkpoint, sample images, ImageNet's class names."""

from __future__ import annotations

from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent
DIGITS_CHECKPOINT = _HERE / "digits_small.safetensors"
DIGITS_SAMPLE = _HERE / "digits_sample.png"


@cache
def imagenet_labels() -> tuple[str, ...]:
    """The 1,000 class names of ImageNet-1k in the order of torchvision's and timm's logits."""
    return tuple((_HERE / "imagenet_classes.txt").read_text(encoding="utf-8").splitlines())
