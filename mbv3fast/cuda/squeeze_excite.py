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
_EIGHTS = 2  # of channels, that a thread multiplies: kEightsOfThread of csrc/squeeze_excite.cu
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
        threads=_THREADS,
        parts=_halves(images, channels, squeezed, tile) if hidden is not None and tile["cluster"] == 1 else (),
        pdl=pdl,
    )


def _halves(images: int, channels: int, squeezed: int, tile: Tile) -> tuple[Part, Part]:
    """The two launches of many blocks."""
    together = tile["images_per_cluster"]
    groups, rows = ceil(images / together), 1 if together == 1 else 4  # that lanes of csrc/excite.cu take at once
    return (
        Part(groups * ceil(squeezed / (_UNITS * rows)), ("pool", "fc1_weight", "fc1_bias"), ("hidden",)),
        Part(groups * ceil(channels / (_CHANNELS * rows)), ("hidden", "fc2_weight", "fc2_bias"), ("scale",)),
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
    else sums, scale (one launch or two) and product one after another. Of meta tensors, whose chip isn't asked, one.
    """
    images, height, width, channels = x.shape
    pixels, squeezed, cluster = height * width, fc1_weight.shape[0], tile["cluster"]
    sizes = {"images": images, "pixels": pixels, "channels": channels, "squeezed": squeezed}
    tiles = 0 if x.is_meta else _count_tiles(sizes, x.dtype, tile)
    scratch = {
        "pool": x.new_empty((images, tiles, channels), dtype=torch.float32) if tiles else None,
        "hidden": x.new_empty((images, squeezed), dtype=torch.float32) if tiles and cluster == 1 else None,
        "scale": x.new_empty((images, channels), dtype=torch.float32) if tiles else None,
    }
    groups = ceil(images / tile["images_per_cluster"])
    matrices = "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"
    once = (Part(groups * cluster, ("pool", *matrices), ("scale",)),)
    parts = (
        Part(images * tiles, ("x",), ("pool",)),
        *(_halves(images, channels, squeezed, tile) if cluster == 1 else once),
        Part(images * ceil(pixels * (channels // 8) / (_THREADS * _EIGHTS)), ("x", "scale"), ("out",)),
    )
    launch(
        SQUEEZE_EXCITE,
        images * cluster,
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
        parts=parts if tiles else (),
        pdl=pdl,
    )


def _count_tiles(sizes: dict[str, int], dtype: torch.dtype, tile: Tile) -> int:
    """Of the pool that a call on the current device needs, 0 where it needs none."""
    args, tiles = SqueezeExciteArgs(**sizes, **tile, dtype=DTYPES[dtype]), ctypes.c_int32()
    check(library().mbv3fast_squeeze_excite_tiles(ctypes.byref(args), ctypes.byref(tiles)))
    return tiles.value
