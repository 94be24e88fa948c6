"""1x1 convolution of a scaled input, on tensor cores: csrc/pointwise_conv.cu."""

from __future__ import annotations

from math import ceil

from torch import Tensor

from mbv3fast.cuda.launch import Kernel, Tile, launch
from mbv3fast.cuda.structs import PointwiseConvArgs

KERNEL = Kernel("pointwise_conv", PointwiseConvArgs)


def pointwise_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    out: Tensor,
    scale: Tensor | None = None,
    residual: Tensor | None = None,
    activation: str | None,
    tile: Tile,
    pdl: bool = False,
) -> None:
    """out = activation((x * scale) @ weight.T + bias) + residual.

    x [N, H, W, C], weight [C', C], residual and out [N, H, W, C'] of float16 or bfloat16; bias [C'], scale [N, C]
    float32; C and C' multiples of 8.
    """
    (images, height, width, inputs), outputs = x.shape, weight.shape[0]
    pixels = height * width
    rows, groups = (images * pixels, 1) if scale is None else (pixels, images)  # scaled tiles end with their image
    launch(
        KERNEL,
        groups * ceil(rows / tile["tile_rows"]) * ceil(outputs / tile["tile_outputs"]),
        {"x": x, "scale": scale, "weight": weight, "bias": bias, "residual": residual},
        {"out": out},
        {"images": images, "pixels": pixels, "inputs": inputs, "outputs": outputs},
        dtype=x.dtype,
        activation=activation,
        tile=tile,
        pdl=pdl,
    )
