"""Small launches of every kernel for `test_work`: odd sizes, blocks that stick out, channels that no block divides."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.kernels.window_cases import FLOAT, HALF, Case, ones, windows

excite_images = pytest.importorskip("mbv3fast.kernels.excite_images")
excite_project = pytest.importorskip("mbv3fast.kernels.excite_project")
linear = pytest.importorskip("mbv3fast.kernels.linear")
pointwise_conv = pytest.importorskip("mbv3fast.kernels.pointwise_conv")
squeeze_excite = pytest.importorskip("mbv3fast.kernels.squeeze_excite")


def ceil(whole: int, part: int) -> int:
    return -(-whole // part)


def pointwise(sizes: tuple[int, int, int, int], blocks: tuple[int, int, int], parts: str, dtype: torch.dtype) -> Case:
    """sizes: images, pixels, inputs, outputs; parts: of residual, scale, out, pool, those that it has."""
    (images, pixels, inputs, outputs), (m, n, k) = sizes, blocks
    config = {"BLOCK_M": m, "BLOCK_N": n, "BLOCK_K": k}
    rows, tiles = images * pixels, ceil(pixels, m)
    tensors = {
        "residual": ones(rows, outputs, dtype=dtype),
        "scale": ones(images, inputs, dtype=FLOAT),
        "out": ones(rows, outputs, dtype=dtype),
        "pool": ones(images, tiles, outputs, dtype=FLOAT),
    }
    given: dict[str, Any] = {name: tensors[name] if name in parts else None for name in tensors}

    def launch() -> None:
        pointwise_conv.pointwise_conv(
            ones(rows, inputs, dtype=dtype),
            ones(outputs, inputs, dtype=dtype),
            ones(outputs, dtype=FLOAT),
            **{"rows": rows, "pixels": pixels, "config": config, **given},
            activation="relu",
        )

    scaled = images * tiles * ceil(outputs, n) * ceil(inputs, k) * m * k
    return Case(launch, scaled * ("scale" in parts))


def squeeze(sizes: tuple[int, int, int, int], blocks: tuple[int, int, int]) -> Case:
    """sizes: images, pixels, channels, hidden units."""
    images, pixels, channels, squeezed = sizes
    config = dict(zip(("BLOCK_P", "BLOCK_C", "BLOCK_S"), blocks, strict=True))
    hidden = ones(images, squeeze_excite.count_parts(pixels, channels, config), squeezed, dtype=FLOAT)
    tensors = (ones(images, pixels, channels), ones(squeezed, channels))
    return Case(lambda: squeeze_excite.squeeze(*tensors, pixels=pixels, hidden=hidden, config=config))


def excite(images: int, parts: int, channels: int, squeezed: int, blocks: tuple[int, int]) -> Case:
    hidden = ones(images, parts, squeezed, dtype=FLOAT)
    layers = (ones(squeezed, dtype=FLOAT), ones(channels, squeezed), ones(channels, dtype=FLOAT))
    scale, config = ones(images, channels, dtype=FLOAT), dict(zip(("BLOCK_PARTS", "BLOCK_C"), blocks, strict=True))
    return Case(lambda: squeeze_excite.excite(hidden, *layers, scale=scale, pixels=7, activation="relu", config=config))


def scale(images: int, pixels: int, channels: int, blocks: tuple[int, int]) -> Case:
    rows, config = images * pixels, dict(zip(("BLOCK_P", "BLOCK_C"), blocks, strict=True))
    tensors = (ones(rows, channels), ones(images, channels, dtype=FLOAT))
    sizes = {"rows": rows, "pixels": pixels, "out": ones(rows, channels)}
    scaled = ceil(rows, blocks[0]) * blocks[0] * ceil(channels, blocks[1]) * blocks[1]
    return Case(lambda: squeeze_excite.apply_scale(*tensors, **sizes, config=config), scaled)


def excited_project(sizes: tuple[int, ...], parts: int, blocks: tuple[int, int, int, int], residual: bool) -> Case:
    """sizes: images, pixels, inputs, outputs, hidden units."""
    (images, pixels, inputs, outputs, squeezed), (m, n, k, _) = sizes, blocks
    hidden = ones(images, parts, squeezed, dtype=FLOAT)
    layers = (ones(squeezed, dtype=FLOAT), ones(inputs, squeezed), ones(inputs, dtype=FLOAT))
    projection = (ones(outputs, inputs), ones(outputs, dtype=FLOAT))
    shape = (images * pixels, outputs)

    def launch() -> None:
        excite_project.excite_project(
            ones(images * pixels, inputs),
            hidden,
            *layers,
            *projection,
            pixels=pixels,
            residual=ones(*shape) if residual else None,
            out=ones(*shape),
            activation=None,
            config=dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K", "BLOCK_PARTS"), blocks, strict=True)),
        )

    return Case(launch, images * ceil(pixels, m) * ceil(outputs, n) * ceil(inputs, k) * m * k)


def excited_images(sizes: tuple[int, int, int, int], blocks: tuple[int, int, int]) -> Case:
    """sizes: images, parts, channels, hidden units."""
    (images, parts, channels, squeezed), (m, c, _) = sizes, blocks
    pool = ones(images, parts, channels, dtype=FLOAT)
    layers = (ones(squeezed, channels), ones(squeezed, dtype=FLOAT), ones(channels, squeezed), ones(channels))
    given = {"scale": ones(images, channels, dtype=FLOAT), "pixels": 9, "activation": "relu"}
    config = dict(zip(("BLOCK_M", "BLOCK_C", "BLOCK_K"), blocks, strict=True))
    scaled = ceil(images, m) * m * ceil(channels, c) * c  # by a sixth, in hardsigmoid
    return Case(lambda: excite_images.excite_images(pool, *layers, **given, config=config), scaled)


def layer(sizes: tuple[int, int, int, int], blocks: tuple[int, int, int], dtype: torch.dtype = HALF) -> Case:
    """sizes: rows, parts, inputs, outputs."""
    rows, parts, inputs, outputs = sizes
    x = ones(rows, parts, inputs, dtype=FLOAT if parts > 1 else dtype)
    tensors, out = (ones(outputs, inputs, dtype=dtype), ones(outputs, dtype=FLOAT)), ones(rows, outputs, dtype=dtype)
    config = dict(zip(("BLOCK_M", "BLOCK_N", "BLOCK_K"), blocks, strict=True))
    return Case(lambda: linear.linear(x, *tensors, out=out, pixels=3, activation=None, config=config))


CASES: dict[str, Case] = {
    **windows(),
    "pointwise_conv: plain": pointwise((2, 35, 24, 40), (16, 32, 16), "out", HALF),
    "pointwise_conv: residual": pointwise((1, 35, 40, 24), (32, 16, 16), "out residual", FLOAT),
    "pointwise_conv: pool alone": pointwise((3, 7, 24, 40), (16, 16, 32), "pool", HALF),
    "pointwise_conv: scale": pointwise((3, 19, 40, 24), (16, 32, 16), "out scale residual", HALF),
    "pointwise_conv: everything": pointwise((2, 19, 24, 24), (16, 16, 16), "out scale residual pool", FLOAT),
    "squeeze: one slice": squeeze((2, 35, 24, 6), (16, 32, 8)),
    "squeeze: slices": squeeze((1, 9, 40, 10), (16, 16, 4)),
    "excite: one round": excite(2, 3, 24, 6, (4, 16)),
    "excite: rounds": excite(1, 9, 40, 10, (2, 32)),
    "scale: tiles": scale(3, 7, 24, (8, 16)),
    "scale: wide": scale(1, 35, 40, (32, 64)),
    "excite_project: rounds": excited_project((3, 19, 40, 24, 10), 5, (16, 16, 16, 2), True),
    "excite_project: one block": excited_project((1, 9, 24, 72, 6), 3, (16, 32, 32, 4), False),
    "excite_images: a part": excited_images((19, 1, 40, 10), (16, 16, 32)),
    "excite_images: parts": excited_images((5, 3, 24, 6), (16, 32, 16)),
    "linear: one row": layer((1, 1, 40, 24), (1, 8, 16)),
    "linear: few rows of parts": layer((3, 2, 40, 13), (1, 8, 32), FLOAT),
    "linear: many rows": layer((19, 1, 40, 24), (16, 16, 16)),
    "linear: many rows of parts": layer((35, 3, 24, 40), (32, 16, 16)),
}
