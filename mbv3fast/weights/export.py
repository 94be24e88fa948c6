"""The way back: our models as state dicts that torchvision's own classes load."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mbv3fast.config import SOURCES, NetworkConfig, has_reduced_tail, network, squeeze_width
from mbv3fast.model import MobileNetV3
from mbv3fast.pyramid import dilated
from mbv3fast.weights.asbuilt import refuse_rebuilt, require_classifier
from mbv3fast.weights.errors import WeightsError

_EPS = SOURCES["torchvision"].bn_eps


def to_torchvision(model: MobileNetV3) -> dict[str, Tensor]:
    """The state dict with which torchvision's mobilenet_v3_large or _small computes what `model` does in eval.

    Two things are converted: squeeze-excite widths of C // 4 are padded with zeros to torchvision's
    (a hidden unit with zero weights adds nothing), and running variances absorb another batch-norm eps
    (var + eps stays the same), so further training should not rely on them.
    A width multiplier's dict needs torchvision's model of the same `width_mult`, and so do its `reduced_tail` and
    `dilated`, for an output stride of 16.

    Raises WeightsError where torchvision's class can't express the network, naming what.
    """
    require_classifier(model, "to_torchvision")
    config = model.description().config
    reason = _inexpressible(config)
    if reason:
        raise WeightsError(f"to_torchvision: torchvision's MobileNetV3 has no {reason}")
    refuse_rebuilt(model, "to_torchvision")
    state = {key: tensor.detach().clone() for key, tensor in model.state_dict().items()}
    if not config.head_bias:
        state["classifier.0.bias"] = state["classifier.0.weight"].new_zeros(config.hidden)
    for index, block in enumerate(config.blocks, start=1):
        if block.squeeze:
            prefix = f"features.{index}.block.{1 + block.has_expand}"
            _pad_squeeze(state, prefix, squeeze_width(block.expanded, 8) - block.squeeze)
    for key, tensor in state.items():
        if key.endswith("running_var") and config.bn_eps != _EPS:
            state[key] = (tensor.to(torch.float64) + (config.bn_eps - _EPS)).to(tensor.dtype)
    return state


def _pad_squeeze(state: dict[str, Tensor], prefix: str, extra: int) -> None:
    for key, padding in (
        (f"{prefix}.fc1.weight", (0, 0, 0, 0, 0, 0, 0, extra)),
        (f"{prefix}.fc1.bias", (0, extra)),
        (f"{prefix}.fc2.weight", (0, 0, 0, 0, 0, extra)),
    ):
        state[key] = F.pad(state[key], padding)


def _inexpressible(config: NetworkConfig) -> str | None:
    if config.tf_same_padding:
        return "'same' padding (tf_same_padding)"
    if config.in_chans != 3:
        return f"input of {config.in_chans} channels"
    if config.num_classes < 1:
        return "embedding without a classifier"
    if not any(block.squeeze for block in config.blocks):
        return "variant without squeeze-excite"
    if any(block.squeeze_activation != "relu" or not block.skip for block in config.blocks):
        return "squeeze-excite activation or missing skip as in timm's mobilenetv3_rw"
    if len(config.blocks) != len(network(config.variant).blocks) or len(config.last_convs) != 1:
        return f"depth of {len(config.blocks)} blocks"
    if config.blocks != dilated(config, 16, from_stride=True).blocks and config.output_stride != 32:
        return "dilations as in timm, or from another stride than 16 on"
    reduced = has_reduced_tail(config)
    table = network(config.variant, reduced_tail=reduced)
    scale = config.blocks[-1].out_channels / table.blocks[-1].out_channels
    for width_mult in (scale, *(percent / 100 for percent in range(10, 401))):
        other = network(config.variant, width_mult=width_mult, reduced_tail=reduced)
        shapes = [(b.expanded, b.out_channels) for b in other.blocks]
        if shapes == [(b.expanded, b.out_channels) for b in config.blocks] and other.hidden == config.hidden:
            return None
    return "widths like these"
