"""Depthwise convolution, with the sums of its output: csrc/depthwise_conv.cu."""

from __future__ import annotations

from math import ceil

from torch import Tensor

from mbv3fast.cuda.launch import Kernel, Tile, launch
from mbv3fast.cuda.structs import DepthwiseConvArgs

KERNEL = Kernel("depthwise_conv", DepthwiseConvArgs)


def count_tiles(height: int, width: int, tile: Tile) -> int:
    """Tiles of an output of this size, each of which makes a row of `pool`."""
    return ceil(height / tile["tile_height"]) * ceil(width / tile["tile_width"])


def geometry(x: Tensor, out: Tensor, kernel: int, stride: int, padding: tuple[int, int, int, int]) -> dict[str, int]:
    """What a launch is told of windows over x [N, H, W, C], for out [N, H', W', C']."""
    (images, height, width, _), (_, out_height, out_width, _) = x.shape, out.shape
    left, _, top, _ = padding
    sizes = {"images": images, "height": height, "width": width, "out_height": out_height, "out_width": out_width}
    return {**sizes, "kernel": kernel, "stride": stride, "top": top, "left": left}


def depthwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    out: Tensor,
    pool: Tensor | None = None,
    kernel: int,
    stride: int,
    padding: tuple[int, int, int, int],
    activation: str | None,
    tile: Tile,
    pdl: bool = False,
) -> None:
    """out = activation(depthwise convolution of x + bias); pool [N, tiles, C] float32 its sums over tiles.

    x [N, H, W, C], weight [kernel * kernel, C], out [N, H', W', C] of float16 or bfloat16; bias [C] float32; C is a
    multiple of 8. padding: left, right, top, bottom, each less than the kernel.
    """
    images, _, _, channels = x.shape
    _, out_height, out_width, _ = out.shape
    launch(
        KERNEL,
        images * count_tiles(out_height, out_width, tile) * ceil(channels / (8 * tile["groups"])),
        {"x": x, "weight": weight, "bias": bias},
        {"out": out, "pool": pool},
        {**geometry(x, out, kernel, stride, padding), "channels": channels},
        dtype=x.dtype,
        activation=activation,
        tile=tile,
        threads=tile["tile_height"] * tile["tile_width"] // 4 * tile["groups"],
        pdl=pdl,
    )
