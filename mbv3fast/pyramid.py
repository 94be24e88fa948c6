"""Strides along a network: its feature pyramid, and dilation in place of the last ones. No torch in here."""

from __future__ import annotations

from dataclasses import dataclass, replace

from mbv3fast.config import BlockConfig, NetworkConfig

OUTPUT_STRIDES = (8, 16, 32)


@dataclass(frozen=True)
class FeatureLevel:
    """A feature map: the output of `features[index]`."""

    index: int
    channels: int
    stride: int


def feature_maps(config: NetworkConfig) -> list[FeatureLevel]:
    """What each of `features` puts out."""
    outputs = [FeatureLevel(0, config.stem, 2)]
    for block in config.blocks:
        outputs.append(FeatureLevel(len(outputs), block.out_channels, outputs[-1].stride * block.stride))
    for width in config.last_convs:
        outputs.append(FeatureLevel(len(outputs), width, outputs[-1].stride))
    return outputs


def feature_levels(config: NetworkConfig) -> tuple[FeatureLevel, ...]:
    """The feature pyramid's five levels, the last map of each stage: strides 2, 4, 8, 16, 32, but where dilated."""
    outputs = feature_maps(config)
    starts = [i for i, block in enumerate(config.blocks, start=1) if block.table_stride > 1]
    return tuple(outputs[end - 1] for end in (*starts, len(outputs)))


def dilated(config: NetworkConfig, output_stride: int, *, from_stride: bool) -> NetworkConfig:
    """`config` with a last map of `output_stride`: behind that, blocks have a dilation in place of their strides.

    from_stride: whether that begins with the depthwise that had the stride, as in torchvision's segmentation networks
    (`dilated=True`), or with the next one, as in timm's (`output_stride=`), which then computes at every second pixel
    what the network computed before (Chen et al. 2017, arXiv 1706.05587, section 3.1).
    Raises ValueError for another stride than 8, 16 or 32.
    """
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f"output_stride: got {output_stride!r}, needs one of {', '.join(map(str, OUTPUT_STRIDES))}")
    blocks: list[BlockConfig] = []
    reached, dilation = 2, 1
    for block in config.blocks:
        stride, replaced, own = block.table_stride, 1, dilation
        if reached * stride > output_stride:
            stride, replaced = 1, stride
            dilation *= replaced
            own = dilation if from_stride else own
        reached *= stride
        blocks.append(replace(block, replaced_stride=replaced, stride=stride, dilation=own))
    return replace(config, blocks=tuple(blocks))


def with_output_stride(config: NetworkConfig, output_stride: int | None, *, from_stride: bool) -> NetworkConfig:
    """`dilated`, if a stride is asked for that `config` doesn't have."""
    if output_stride is None or output_stride == config.output_stride:
        return config
    return dilated(config, output_stride, from_stride=from_stride)
