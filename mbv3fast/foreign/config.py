"""The config of the network that others' modules make up."""

from __future__ import annotations

import itertools
from dataclasses import replace

from mbv3fast.config import BlockConfig, NetworkConfig
from mbv3fast.foreign.classes import is_linear
from mbv3fast.foreign.network import ForeignBlock, ForeignNetwork, UnknownModuleError
from mbv3fast.tables import ACTIVATIONS, ROWS, Activation


def network_config(network: ForeignNetwork) -> NetworkConfig:
    """Raises UnknownModuleError, which names the module that has no equivalent."""
    stem, last, norm = network.stem.conv.module, network.classifier.module, network.stem.norm.module
    head = network.head.layer.module if network.head is not None else None
    lasts = tuple(conv.conv.module.out_channels for conv in network.last_convs)
    return NetworkConfig(
        variant=min(ROWS, key=lambda name: abs(len(ROWS[name]) - len(network.blocks))),  # who may load its weights
        stem=stem.out_channels,
        blocks=_staged(tuple(map(_block_config, network.blocks))),
        last_convs=lasts,
        hidden=lasts[-1] if head is None else head.weight.shape[0],
        num_classes=last.out_features if is_linear(last) else 0,
        in_chans=stem.in_channels,
        activation=known_activation(network.stem.activation, network.stem.conv.name),
        head_bias=head is None or head.bias is not None,
        bn_eps=norm.eps,
        bn_momentum=norm.momentum if norm.momentum is not None else 0.1,
        tf_same_padding=network.stem.same,
        dropout=network.dropout,
    )


def known_activation(activation: str | None, name: str) -> Activation:
    """The activation behind the module `name`. Raises UnknownModuleError where there is none."""
    if activation not in ACTIVATIONS:
        raise UnknownModuleError(f"{name} has no activation")
    return activation


def _staged(blocks: tuple[BlockConfig, ...]) -> tuple[BlockConfig, ...]:
    """With the strides that gave way to dilations: where these begin, unless a residual says that none was there."""
    found = list(blocks)
    for index, (before, block) in enumerate(itertools.pairwise(blocks), start=1):
        if block.dilation == 2 * before.dilation and block.stride == 1 and not block.has_residual:
            found[index] = replace(block, replaced_stride=2, skip=True)
    return tuple(found)


def _block_config(block: ForeignBlock) -> BlockConfig:
    depthwise, excite, project = block.depthwise.conv.module, block.squeeze_excite, block.project.conv
    first = depthwise if block.expand is None else block.expand.conv.module
    activation = known_activation(block.depthwise.activation, block.depthwise.conv.name)
    squeeze_activation = "relu" if excite is None else known_activation(excite.activation, excite.name)
    try:
        config = BlockConfig(
            in_channels=first.in_channels,
            kernel=depthwise.kernel_size[0],
            expanded=depthwise.out_channels,
            out_channels=project.module.out_channels,
            squeeze=0 if excite is None else excite.fc1.module.out_channels,
            activation=activation,
            stride=depthwise.stride[0],
            skip=block.residual or depthwise.stride[0] > 1 or first.in_channels != project.module.out_channels,
            squeeze_activation=squeeze_activation,
            dilation=depthwise.dilation[0],
        )
    except ValueError as error:
        raise UnknownModuleError(f"{block.name}: {error}") from error
    if config.has_expand != (block.expand is not None) or config.has_residual != block.residual:
        raise UnknownModuleError(f"{block.name} expands to as many channels as it has, or adds what doesn't fit")
    if block.project.activation is not None:
        raise UnknownModuleError(f"{project.name} has an activation behind it, needs none")
    return config
