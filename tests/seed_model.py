"""The seed post's network, written anew from its tables and with its module names: an independent peer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

F, T = False, True
# [kernel, expanded, out, squeeze-excite, hardswish (else ReLU), stride]
LARGE = [
    [3, 16, 16, F, F, 1],
    [3, 64, 24, F, F, 2],
    [3, 72, 24, F, F, 1],
    [5, 72, 40, T, F, 2],
    [5, 120, 40, T, F, 1],
    [5, 120, 40, T, F, 1],
    [3, 240, 80, F, T, 2],
    [3, 200, 80, F, T, 1],
    [3, 184, 80, F, T, 1],
    [3, 184, 80, F, T, 1],
    [3, 480, 112, T, T, 1],
    [3, 672, 112, T, T, 1],
    [5, 672, 160, T, T, 2],
    [5, 960, 160, T, T, 1],
    [5, 960, 160, T, T, 1],
]
SMALL = [
    [3, 16, 16, T, F, 2],
    [3, 72, 24, F, F, 2],
    [3, 88, 24, F, F, 1],
    [5, 96, 40, T, T, 2],
    [5, 240, 40, T, T, 1],
    [5, 240, 40, T, T, 1],
    [5, 120, 48, T, T, 1],
    [5, 144, 48, T, T, 1],
    [5, 288, 96, T, T, 2],
    [5, 576, 96, T, T, 1],
    [5, 576, 96, T, T, 1],
]
TABLES = {"large": (LARGE, 1280), "small": (SMALL, 1024)}


def hardsigmoid(x: Tensor) -> Tensor:
    return torch.clamp(x + 3, 0, 6) / 6


class HardSwish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * hardsigmoid(x)


def activation(hardswish: bool) -> nn.Module:
    return HardSwish() if hardswish else nn.ReLU()


def conv_bn(before: int, after: int, kernel: int, *last: nn.Module, stride: int = 1, groups: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(before, after, kernel, stride, (kernel - 1) // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(after), *last)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = channels // 4
        self.excitation = nn.Sequential(nn.Linear(channels, squeezed), nn.ReLU(), nn.Linear(squeezed, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * hardsigmoid(self.excitation(x.mean((2, 3))))[:, :, None, None]


class Bottleneck(nn.Module):
    def __init__(self, before: int, kernel: int, expanded: int, after: int, se: bool, hs: bool, stride: int) -> None:
        super().__init__()
        expand = [] if expanded == before else [conv_bn(before, expanded, 1, activation(hs))]
        depthwise = conv_bn(expanded, expanded, kernel, activation(hs), stride=stride, groups=expanded)
        squeeze_excite = [SqueezeExcite(expanded)] if se else []
        self.residual = nn.Sequential(*expand, depthwise, *squeeze_excite, conv_bn(expanded, after, 1))
        self.shortcut = stride == 1 and before == after

    def forward(self, x: Tensor) -> Tensor:
        return self.residual(x) + x if self.shortcut else self.residual(x)


class SeedMobileNetV3(nn.Module):
    """[N, 3, H, W] to [N, classes]. BN eps is 1e-5; squeeze-excite widths are exactly C // 4."""

    def __init__(self, variant: str, classes: int = 1000) -> None:
        super().__init__()
        table, hidden = TABLES[variant]
        widths = [16] + [row[2] for row in table]
        self.first_conv = conv_bn(3, 16, 3, HardSwish(), stride=2)
        self.bottlenecks = nn.Sequential(*(Bottleneck(w, *row) for w, row in zip(widths[:-1], table, strict=True)))
        self.last_conv = conv_bn(widths[-1], table[-1][1], 1, HardSwish())
        self.fc1 = nn.Sequential(nn.Linear(table[-1][1], hidden), HardSwish())
        self.fc2 = nn.Sequential(nn.Dropout(0.2), nn.Linear(hidden, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.last_conv(self.bottlenecks(self.first_conv(x)))
        return self.fc2(self.fc1(x.mean((2, 3))))
