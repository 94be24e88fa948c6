"""LR-ASPP, segmentation on a MobileNetV3, in plain PyTorch with torchvision's module names."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mbv3fast.config import NetworkConfig
from mbv3fast.description import Description
from mbv3fast.layers import initialise
from mbv3fast.model import Backbone, feature_layers
from mbv3fast.preprocess import Preprocess, channels_first
from mbv3fast.pyramid import FeatureLevel, feature_maps

HIDDEN = 128  # channels of the head


class LRASPPHead(nn.Module):
    """A gate from the mean of the last map, and both maps' classes summed (Howard et al. 2019, section 6.4, figure 10).

    low [N, low_channels, h, w] and high [N, high_channels, h', w'] to scores [N, num_classes, h, w].
    """

    def __init__(self, low_channels: int, high_channels: int, num_classes: int) -> None:
        super().__init__()
        self.cbr = nn.Sequential(
            nn.Conv2d(high_channels, HIDDEN, 1, bias=False), nn.BatchNorm2d(HIDDEN), nn.ReLU(inplace=True)
        )
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(high_channels, HIDDEN, 1, bias=False), nn.Sigmoid()
        )
        self.low_classifier = nn.Conv2d(low_channels, num_classes, 1)
        self.high_classifier = nn.Conv2d(HIDDEN, num_classes, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        gated = self.cbr(high) * self.scale(high)
        gated = F.interpolate(gated, size=low.shape[-2:], mode="bilinear", align_corners=False)
        return self.low_classifier(low) + self.high_classifier(gated)


class LRASPP(Backbone):
    """A MobileNetV3 without its classifier, and an LRASPPHead on its first map of stride 8 and its last one.

    Input as of MobileNetV3; output {"out": scores [N, num_classes, H, W] of the weights' dtype}, as torchvision's.
    """

    def __init__(self, config: NetworkConfig, preprocess: Preprocess | None = None) -> None:
        super().__init__(config, preprocess)
        _needs_classes(config.num_classes)
        self.labels: tuple[str, ...] | None = None
        self.backbone = feature_layers(config)
        outputs = feature_maps(config)
        low, high = next((level for level in outputs if level.stride == 8), None), outputs[-1]
        if low is None:
            raise ValueError("config: no map has stride 8, which the head needs")
        self.levels: tuple[FeatureLevel, ...] = (low, high)
        self.classifier = LRASPPHead(low.channels, high.channels, config.num_classes)
        initialise(self.backbone)

    @property
    def features(self) -> nn.Sequential:  # type: ignore[override] # torchvision calls it so
        return self.backbone

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last two layers by fresh ones of `num_classes` outputs."""
        config = replace(self.config, num_classes=num_classes)
        _needs_classes(config.num_classes)
        self.config, self.labels = config, None
        like = self.classifier.low_classifier.weight
        for name in ("low_classifier", "high_classifier"):
            fresh = nn.Conv2d(getattr(self.classifier, name).in_channels, config.num_classes, 1)
            setattr(self.classifier, name, fresh.to(like.device, like.dtype).train(self.training))

    def description(self) -> Description:
        outputs = getattr(self.classifier.low_classifier, "out_channels", self.config.num_classes)
        config = replace(self.config, num_classes=outputs)
        labels = tuple(map(str, self.labels or ()))
        return Description(config, self._preprocess(), labels if len(labels) == outputs else None)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return self.reference_forward(x)

    def reference_forward(self, x: Tensor) -> dict[str, Tensor]:
        """The forward module by module, by no engine."""
        self.check_input(x)
        return self.segment(x, *self.maps(self.normalised(x)))

    def segment(self, x: Tensor, low: Tensor, high: Tensor) -> dict[str, Tensor]:
        """What the head makes of the two maps of `x`, at the size of `x`."""
        return segmented(self.classifier, low, high, x, self.config.in_chans)


class Segmenter(nn.Module):
    """An LRASPPHead on what another module makes two maps of, for torch.export; in and out as of LRASPP."""

    def __init__(self, maps: nn.Module, head: nn.Module, in_chans: int) -> None:
        super().__init__()
        self.maps, self.head, self.in_chans = maps, head, in_chans

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low, high = self.maps(x)
        return segmented(self.head, low, high, x, self.in_chans)


def segmented(head: nn.Module, low: Tensor, high: Tensor, x: Tensor, channels: int) -> dict[str, Tensor]:
    """The head's scores at the size of the images `x`."""
    image = channels_first(x, channels) if x.dtype == torch.uint8 else x
    return {"out": F.interpolate(head(low, high), size=image.shape[-2:], mode="bilinear", align_corners=False)}


def _needs_classes(num_classes: int) -> None:
    if num_classes < 1:
        raise ValueError(f"num_classes: got {num_classes}, needs at least 1")
