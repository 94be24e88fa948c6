"""The building blocks of MobileNetV3 as plain PyTorch modules, with torchvision's parameter names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from mbv3fast.config import BlockConfig, NetworkConfig
from mbv3fast.tables import Activation

Padding = tuple[int, int, int, int]  # left, right, top, bottom, as torch.nn.functional.pad takes them


def activation_module(name: Activation) -> nn.Module:
    """`name` as a module; in place, as torchvision does it, to save training memory."""
    return nn.Hardswish(inplace=True) if name == "hardswish" else nn.ReLU(inplace=True)


def same_padding(
    height: int, width: int, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Padding:
    """TensorFlow's 'SAME' padding: the output is ceil(input / stride), an odd pixel goes right and below."""

    def split(size: int, axis: int) -> tuple[int, int]:
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        missing = (stride[axis] - size % stride[axis]) % stride[axis]  # of positive numbers, as ONNX divides them
        total = max(reach - stride[axis] + missing, 0)  # which names the size once: tracers unfold it layer by layer
        return total // 2, total - total // 2

    return (*split(width, 1), *split(height, 0))


@torch.fx.wrap
def pad_same(x: Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """x [N, C, H, W] with zeros around it as `same_padding` says; one node in torch.fx graphs, for any size."""
    return F.pad(x, same_padding(x.shape[2], x.shape[3], kernel, stride, dilation))


class Conv2dSame(nn.Conv2d):
    """A convolution with TensorFlow's 'SAME' padding, which depends on the input's size at stride 2."""

    def forward(self, input: Tensor) -> Tensor:
        padded = pad_same(input, self.kernel_size, self.stride, self.dilation)
        return self._conv_forward(padded, self.weight, self.bias)


class ConvBNAct(nn.Sequential):
    """Convolution without bias, batch norm and, unless `activation` is None, an activation.

    [N, C, H, W] to [N, C', ceil(H / stride), ceil(W / stride)].
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        config: NetworkConfig,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: Activation | None,
    ) -> None:
        same = config.tf_same_padding and stride > 1  # at stride 1 and odd kernels both paddings agree
        conv = (Conv2dSame if same else nn.Conv2d)(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=0 if same else kernel // 2 * dilation,
            dilation=dilation,
            groups=groups,
            bias=False,
        )
        norm = nn.BatchNorm2d(out_channels, eps=config.bn_eps, momentum=config.bn_momentum)
        super().__init__(conv, norm, *([activation_module(activation)] if activation else []))


class SqueezeExcite(nn.Module):
    """x * hardsigmoid(fc2(activation(fc1(mean(x over H, W))))), [N, C, H, W] to the same (section 5.3)."""

    def __init__(self, channels: int, squeeze: int, activation: Activation) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeeze, 1)
        self.activation = activation_module(activation)
        self.fc2 = nn.Conv2d(squeeze, channels, 1)
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return x * self.scale_activation(scale)


class InvertedResidual(nn.Module):
    """Expand, depthwise, squeeze_excite, project, each present as `config` says, with the residual (figure 4).

    The parts stand in `block` in this order, so that names are torchvision's; `expand`, `depthwise`,
    `squeeze_excite` and `project` reach them whatever their index.
    """

    def __init__(self, config: BlockConfig, network: NetworkConfig) -> None:
        super().__init__()
        width = config.expanded
        parts: list[nn.Module] = []
        if config.has_expand:
            parts.append(ConvBNAct(config.in_channels, width, 1, network, activation=config.activation))
        depthwise = ConvBNAct(
            width,
            width,
            config.kernel,
            network,
            stride=config.stride,
            dilation=config.dilation,
            groups=width,
            activation=config.activation,
        )
        parts.append(depthwise)
        if config.squeeze:
            parts.append(SqueezeExcite(width, config.squeeze, config.squeeze_activation))
        parts.append(ConvBNAct(width, config.out_channels, 1, network, activation=None))
        self.block = nn.Sequential(*parts)
        self.has_expand = config.has_expand
        self.has_squeeze_excite = config.squeeze > 0
        self.has_residual = config.has_residual

    @property
    def expand(self) -> nn.Module | None:
        return self.block[0] if self.has_expand else None

    @property
    def depthwise(self) -> nn.Module:
        return self.block[int(self.has_expand)]

    @property
    def squeeze_excite(self) -> nn.Module | None:
        return self.block[int(self.has_expand) + 1] if self.has_squeeze_excite else None

    @property
    def project(self) -> nn.Module:
        return self.block[-1]

    def forward(self, x: Tensor) -> Tensor:
        out = self.block(x)
        return x + out if self.has_residual else out


def initialise(model: nn.Module) -> None:
    """Kaiming-normal convolutions (fan out), N(0, 0.01) linear layers, as torchvision starts training."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, 0, 0.01)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def first_conv(features: nn.Module) -> nn.Conv2d | None:
    """The convolution that sees the input, None where something else does."""
    leaf = next((module for module in features.modules() if not module._modules), None)
    return leaf if isinstance(leaf, nn.Conv2d) else None
