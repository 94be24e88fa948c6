"""Squeeze-excite, its scale alone or the whole: csrc/excite.cu and csrc/squeeze_excite.cu."""

from __future__ import annotations

import ctypes
from math import ceil

import torch
from torch import Tensor

from mbv3fast.cuda.launch import DTYPES, Kernel, Part, Tile, launch
from mbv3fast.cuda.library import check, library
from mbv3fast.cuda.structs import ExciteArgs, SqueezeExciteArgs

EXCITE = Kernel("excite", ExciteArgs)
SQUEEZE_EXCITE = Kernel("squeeze_excite", SqueezeExciteArgs)
_THREADS = 256  # of a block: kExciteThreads of csrc/excite.cuh
_UNITS, _CHANNELS = _THREADS // 32, _THREADS // 8  # of a slice in one of two launches, for a row that lanes take


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
    float32; C a multiple of 8. hidden [N, S] float32: scratch, with which many blocks do it in two launches where
    there is no cluster, else one block in one.
    """
    (images, tiles, channels), squeezed = pool.shape, fc1_weight.shape[0]
    together = tile["images_per_cluster"]
    groups = ceil(images / together)
    rows = 1 if together == 1 else 4  # that lanes of csrc/excite.cu take at once
    halves = (
        Part(groups * ceil(squeezed / (_UNITS * rows)), ("pool", "fc1_weight", "fc1_bias"), ("hidden",)),
        Part(groups * ceil(channels / (_CHANNELS * rows)), ("hidden", "fc2_weight", "fc2_bias"), ("scale",)),
    )
    launch(
        EXCITE,
        groups * tile["cluster"],
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
        threads=_THREADS,
        parts=halves if hidden is not None and tile["cluster"] == 1 else (),
        pdl=pdl,
    )


def squeeze_excite(
    x: Tensor,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    *,
    out: Tensor,
    activation: str | None,
    tile: Tile,
    pdl: bool = False,
) -> None:
    """out = x * hardsigmoid(fc2(activation(fc1(mean of x over H, W)))).

    x and out [N, H, W, C], weights as in `excite`. One launch where a cluster's shared memory has room for an image,
    else sums, scale and product one after another, which are seen as one.
    """
    images, height, width, channels = x.shape
    sizes = {"images": images, "pixels": height * width, "channels": channels, "squeezed": fc1_weight.shape[0]}
    tiles = 0 if x.is_meta else _count_tiles(sizes, x.dtype, tile)
    scratch = {
        "pool": x.new_empty((images, tiles, channels), dtype=torch.float32) if tiles else None,
        "hidden": x.new_empty((images, sizes["squeezed"]), dtype=torch.float32) if tiles else None,
        "scale": x.new_empty((images, channels), dtype=torch.float32) if tiles else None,
    }
    launch(
        SQUEEZE_EXCITE,
        images * tile["cluster"],
        {
            "x": x,
            "fc1_weight": fc1_weight,
            "fc1_bias": fc1_bias,
            "fc2_weight": fc2_weight,
            "fc2_bias": fc2_bias,
        },
        {"out": out, **scratch},
        sizes,
        dtype=x.dtype,
        activation=activation,
        tile=tile,
        threads=_THREADS,
        pdl=pdl,
    )


def _count_tiles(sizes: dict[str, int], dtype: torch.dtype, tile: Tile) -> int:
    """Of the pool that a call on the current device needs, 0 where it needs none."""
    args, tiles = SqueezeExciteArgs(**sizes, **tile, dtype=DTYPES[dtype]), ctypes.c_int32()
    check(library().mbv3fast_squeeze_excite_tiles(ctypes.byref(args), ctypes.byref(tiles)))
    return tiles.value
