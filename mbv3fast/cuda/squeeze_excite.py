"""Squeeze-excite, its scale alone or the whole: csrc/squeeze_excite.cu."""

from __future__ import annotations

from math import ceil

from torch import Tensor

from mbv3fast.cuda.launch import Kernel, Tile, launch
from mbv3fast.cuda.structs import ExciteArgs

EXCITE = Kernel("excite", ExciteArgs)


def excite(
    pool: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    *,
    hidden: Tensor | None = None,
    scale: Tensor,
    pixels: int,
    activation: str | None,
    tile: Tile,
    pdl: bool = False,
) -> None:
    """scale = hardsigmoid(fc2(activation(fc1(sum of pool over its tiles / pixels)))).

    pool [N, tiles, C] and scale [N, C] float32, fc1_weight [S, C] and fc2_weight [C, S] of float16 or bfloat16; biases
    float32; C a multiple of 8. hidden [N, S] float32: scratch, without which no cluster's launch is split in two.
    """
    (images, tiles, channels), squeezed = pool.shape, fc1_weight.shape[0]
    launch(
        EXCITE,
        ceil(images / tile["images_per_cluster"]) * tile["cluster"],
        {
            "pool": pool,
            "fc1_weight": fc1_weight,
            "fc1_bias": fc1_bias,
            "fc2_weight": fc2_weight,
            "fc2_bias": fc2_bias,
        },
        {"scale": scale, "hidden": hidden},
        {"images": images, "tiles": tiles, "pixels": pixels, "channels": channels, "squeezed": squeezed},
        dtype=fc1_weight.dtype,
        activation=activation,
        tile=tile,
        pdl=pdl,
    )
