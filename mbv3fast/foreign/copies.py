"""Ours filled with copies of what others' modules hold: dtypes, devices, modes, what is frozen and what is shared."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from mbv3fast.foreign.config import known_activation
from mbv3fast.foreign.modules import is_linear
from mbv3fast.foreign.network import ForeignBlock, ForeignConv, ForeignExcite, ForeignNetwork, UnknownModuleError
from mbv3fast.layers import Conv2dSame, ConvBNAct, InvertedResidual, SqueezeExcite, activation_module
from mbv3fast.model import MobileNetV3

_Memo = dict[int, Any]  # copy.deepcopy's: what stands in several places is copied once


def fill(ours: MobileNetV3, network: ForeignNetwork) -> None:
    """Put copies of all that computes into the places of ours, which may be on meta: none of its tensors is kept.

    Raises UnknownModuleError, which names the module that doesn't fit.
    """
    memo: _Memo = {}
    layers: list[ForeignConv | ForeignBlock] = [network.stem, *network.blocks, *network.last_convs]
    for own, layer in zip(ours.features, layers, strict=True):
        if isinstance(layer, ForeignConv):
            _fill_conv(own, layer, memo)
        else:
            _fill_block(own, layer, memo)
    head, classifier = network.head, network.classifier
    if head is None:
        ours.classifier = copy.deepcopy(classifier, memo)  # type: ignore[assignment] # users may put anything there
        return
    if isinstance(head.layer, nn.Conv2d):
        _check_pointwise(head.layer, head.name)
    _take(ours.classifier[0], head.layer, head.name, memo)
    ours.classifier[1] = activation_module(known_activation(head.activation, head.name))
    ours.classifier[3] = _plain_linear(classifier, memo) if is_linear(classifier) else copy.deepcopy(classifier, memo)


def _plain_linear(linear: nn.Linear, memo: _Memo) -> nn.Linear:
    plain = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, device="meta")
    _take(plain, linear, "classifier", memo)
    return plain


def _take(target: nn.Module, source: nn.Module, name: str, memo: _Memo) -> None:
    """The tensors of a layer, a 1x1 convolution's for a linear one too, and its mode."""
    own = {**dict(target.named_parameters(recurse=False)), **dict(target.named_buffers(recurse=False))}
    taken = {**dict(source.named_parameters(recurse=False)), **dict(source.named_buffers(recurse=False))}
    if own.keys() != taken.keys():
        raise UnknownModuleError(f"{name} has {', '.join(taken)}, needs {', '.join(own)}")
    for part, tensor in taken.items():
        if not tensor.isfinite().all():
            raise UnknownModuleError(f"{name}.{part} isn't finite everywhere, so nothing can be compared")
        setattr(target, part, _shaped(copy.deepcopy(tensor, memo), own[part], f"{name}.{part}"))
    target.training = source.training


def _shaped(tensor: Tensor, like: Tensor, name: str) -> Tensor:
    shape = tuple(tensor.shape)
    if shape == tuple(like.shape):
        return tensor
    if shape != (*like.shape, 1, 1):
        raise UnknownModuleError(f"{name} has shape {shape}, needs {tuple(like.shape)}")
    return nn.Parameter(tensor.detach().flatten(1), tensor.requires_grad)


def _fill_block(own: nn.Module, block: ForeignBlock, memo: _Memo) -> None:
    assert isinstance(own, InvertedResidual)
    for part, conv in ((own.expand, block.expand), (own.depthwise, block.depthwise), (own.project, block.project)):
        if conv is not None and part is not None:
            _fill_conv(part, conv, memo)
    if block.squeeze_excite is not None:
        _fill_excite(own.squeeze_excite, block.squeeze_excite, memo)


def _fill_excite(own: nn.Module | None, excite: ForeignExcite, memo: _Memo) -> None:
    assert isinstance(own, SqueezeExcite)
    for target, source in ((own.fc1, excite.fc1), (own.fc2, excite.fc2)):
        _check_pointwise(source, excite.name)
        _take(target, source, excite.name, memo)


def _check_pointwise(conv: nn.Conv2d, name: str) -> None:
    """That it computes what a linear layer does of one pixel."""
    if (conv.kernel_size, conv.stride, conv.padding, conv.groups) != ((1, 1), (1, 1), (0, 0), 1):
        raise UnknownModuleError(f"{name} has {conv}, needs a plain 1x1 convolution")


def _fill_conv(own: nn.Module, foreign: ForeignConv, memo: _Memo) -> None:
    assert isinstance(own, ConvBNAct)
    conv, norm = foreign.conv, foreign.norm
    own[0] = (Conv2dSame if foreign.same else nn.Conv2d)(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type] # of two numbers
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
        device="meta",
    )
    own[1] = nn.BatchNorm2d(
        norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, device="meta"
    )
    _take(own[0], conv, foreign.name, memo)
    _take(own[1], norm, foreign.norm_name, memo)
    if foreign.activation is not None:
        own[2] = activation_module(known_activation(foreign.activation, foreign.name))
    elif len(own) > 2:
        del own[2]
