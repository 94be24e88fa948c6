"""Ours filled with copies of what others' modules hold: dtypes, devices, modes, what is frozen and what is shared."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from mbv3fast.foreign.classes import is_linear
from mbv3fast.foreign.config import known_activation
from mbv3fast.foreign.network import ForeignBlock, ForeignConv, ForeignExcite, ForeignNetwork, Named, UnknownModuleError
from mbv3fast.layers import Conv2dSame, ConvBNAct, InvertedResidual, SqueezeExcite, activation_module
from mbv3fast.model import MobileNetV3

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
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
    head, last = network.head, _copied_last(network.classifier, memo)
    if head is None:
        ours.classifier = last  # type: ignore[assignment] # users may put anything there
        return
    if isinstance(head.layer.module, nn.Conv2d):
        _check_pointwise(head.layer)
    ours.classifier[0] = _take(ours.classifier[0], head.layer, memo)
    ours.classifier[1] = activation_module(known_activation(head.activation, head.layer.name)).train(ours.training)
    ours.classifier[2].training = head.drops
    ours.classifier[3] = last


def _copied_last(classifier: Named[nn.Module], memo: _Memo) -> nn.Module:
    """Of timm's linear layer PyTorch's, of anything else what it is."""
    last = classifier.module
    if not is_linear(last):
        return copy.deepcopy(last, memo)
    return _take(
        nn.Linear(last.in_features, last.out_features, bias=last.bias is not None, device="meta"), classifier, memo
    )


def _take(target: nn.Module, layer: Named[nn.Module], memo: _Memo) -> nn.Module:
    """`target` with the tensors of a layer, a 1x1 convolution's for a linear one too, and its mode; for a layer that
    stands in several places, what was made of it before.
    """
    source, name = layer.module, layer.name
    if id(source) in memo:
        return memo[id(source)]
    own = {**dict(target.named_parameters(recurse=False)), **dict(target.named_buffers(recurse=False))}
    taken = {**dict(source.named_parameters(recurse=False)), **dict(source.named_buffers(recurse=False))}
    if own.keys() != taken.keys():
        raise UnknownModuleError(f"{name} has {', '.join(taken)}, needs {', '.join(own)}")
    for part, tensor in taken.items():
        if tensor.dtype not in _DTYPES and tensor.is_floating_point():
            raise UnknownModuleError(f"{name}.{part} is {tensor.dtype}, needs float16, bfloat16, float32 or float64")
        if tensor.is_complex() or not tensor.isfinite().all():
            raise UnknownModuleError(f"{name}.{part} isn't finite everywhere, so nothing can be compared")
        setattr(target, part, _shaped(copy.deepcopy(tensor, memo), own[part], f"{name}.{part}"))
    target.training = source.training
    memo[id(source)] = target
    return target


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
    _check_pointwise(excite.fc1)
    _check_pointwise(excite.fc2)
    for part, source in (("fc1", excite.fc1), ("fc2", excite.fc2)):
        setattr(own, part, _take(getattr(own, part), source, memo))


def _check_pointwise(layer: Named[nn.Module]) -> None:
    """That a convolution computes what a linear layer does of one pixel."""
    conv = layer.module
    assert isinstance(conv, nn.Conv2d)
    if (conv.kernel_size, conv.stride, conv.padding, conv.groups) != ((1, 1), (1, 1), (0, 0), 1):
        raise UnknownModuleError(f"{layer.name} is {conv}, needs a plain 1x1 convolution")


def _fill_conv(own: nn.Module, foreign: ForeignConv, memo: _Memo) -> None:
    assert isinstance(own, ConvBNAct)
    conv, norm = foreign.conv.module, foreign.norm.module
    plain = (Conv2dSame if foreign.same else nn.Conv2d)(
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
    own[0] = _take(plain, foreign.conv, memo)
    settings = norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats
    own[1] = _take(nn.BatchNorm2d(*settings, device="meta"), foreign.norm, memo)
    if foreign.activation is not None:
        own[2] = activation_module(known_activation(foreign.activation, foreign.conv.name)).train(own.training)
    elif len(own) > 2:
        del own[2]
