"""Expand, depthwise and projection in one launch: csrc/inverted_residual.cuh."""

from __future__ import annotations

from torch import Tensor

from mbv3fast.cuda.depthwise_conv import count_tiles, geometry
from mbv3fast.cuda.launch import Kernel, Tile, launch
from mbv3fast.cuda.structs import InvertedResidualArgs

KERNEL = Kernel("inverted_residual", InvertedResidualArgs)


def inverted_residual(
    x: Tensor,
    expand_weight: Tensor | None,
    expand_bias: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    project_weight: Tensor | None = None,
    project_bias: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    out: Tensor,
    pool: Tensor | None = None,
    kernel: int,
    stride: int,
    padding: tuple[int, int, int, int],
    activation: str | None,
    tile: Tile,
    pdl: bool = False,
) -> None:
    """out = depthwise @ project_weight.T + project_bias + residual, of which

        expanded = activation(x @ expand_weight.T + expand_bias), or x where that is None
        depthwise = activation(depthwise convolution of expanded + bias)

    Without project_weight out is `depthwise`, and pool [N, tiles, E] float32 its sums over tiles.
    x [N, H, W, C], expand_weight [E, C], weight [kernel * kernel, E], project_weight [M, E], residual and out
    [N, H', W', M] of float16 or bfloat16; biases float32; C, E and M multiples of 8. padding as in
    `depthwise_conv`. A residual that is x itself is read once.
    """
    images, _, _, inputs = x.shape
    channels = weight.shape[1]
    adds_input = residual is x
    _, out_height, out_width, outputs = out.shape
    launch(
        KERNEL,
        images * count_tiles(out_height, out_width, tile) * tile["splits"],
        {
            "x": x,
            "expand_weight": expand_weight,
            "expand_bias": expand_bias,
            "weight": weight,
            "bias": bias,
            "project_weight": project_weight,
            "project_bias": project_bias,
            "residual": None if adds_input else residual,
        },
        {"out": out, "pool": pool},
        {
            **geometry(x, out, kernel, stride, padding),
            "inputs": inputs,
            "channels": channels,
            "outputs": 0 if project_weight is None else outputs,
            "adds_input": adds_input,
        },
        dtype=x.dtype,
        activation=activation,
        tile=tile,
        pdl=pdl,
    )
