"""`pointwise_conv` at every shape of both networks, with everything that may stand around it."""

from __future__ import annotations

import itertools
from collections.abc import Collection
from typing import Any

import pytest
import torch

from mbv3fast.config import network
from mbv3fast.reference import pointwise_conv_ref
from tests.kernels.harness import BATCHES, BLOCKS, DTYPES, Guards, in_turn, run
from tests.numerics import assert_agrees

configs = pytest.importorskip("mbv3fast.kernels.configs")
kernel = pytest.importorskip("mbv3fast.kernels.pointwise_conv")

Shape = tuple[int, int, str | None, bool, bool]  # inputs, outputs, activation, residual, scale
EXPANDS = {(b.in_channels, b.expanded, b.activation, False, False) for b in BLOCKS if b.has_expand}
PROJECTS = {(b.expanded, b.out_channels, None, b.has_residual, bool(b.squeeze)) for b in BLOCKS}
LASTS = {
    (c.blocks[-1].out_channels, c.last_convs[0], "hardswish", False, False) for c in map(network, ("large", "small"))
}
SHAPES = sorted(EXPANDS | PROJECTS | LASTS, key=str)


def check(
    shape: Shape,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    config: Any,
    wanted: Collection[str] = ("out",),
) -> None:
    inputs, outputs, activation, has_residual, has_scale = shape
    (images, height, width), guards = size, Guards()
    pixels, rows = height * width, images * height * width
    x = guards.randn(images, height, width, inputs, dtype=dtype)
    weight = guards.randn(outputs, inputs, dtype=dtype, scale=inputs**-0.5)
    bias = guards.randn(outputs, dtype=torch.float32)
    residual = guards.randn(images, height, width, outputs, dtype=dtype) if has_residual else None
    scale = guards.hold(guards.randn(images, inputs, dtype=torch.float32).sigmoid()) if has_scale else None
    out = guards.empty(images, height, width, outputs, dtype=dtype) if "out" in wanted else None
    tiles = -(-pixels // config["BLOCK_M"])
    pool = guards.empty(images, tiles, outputs, dtype=torch.float32) if "pool" in wanted else None
    written = [tensor for tensor in (out, pool) if tensor is not None]

    def launch() -> None:
        kernel.pointwise_conv(
            x,
            weight,
            bias,
            rows=rows,
            pixels=pixels,
            residual=residual,
            scale=scale,
            out=out,
            pool=pool,
            activation=activation,
            config=config,
        )

    run(launch, guards, *written)

    def reference(kind: torch.dtype) -> torch.Tensor:
        added = None if residual is None else residual.to(kind).permute(0, 3, 1, 2)
        tensors = (x.to(kind).permute(0, 3, 1, 2), weight.to(kind)[:, :, None, None], bias.to(kind), added, scale)
        return pointwise_conv_ref(*tensors, activation=activation).permute(0, 2, 3, 1)  # type: ignore[arg-type]

    truth, plain = reference(torch.float64), reference(dtype)
    if out is not None:
        assert_agrees(out, plain, truth)
    if pool is not None:
        assert_agrees(pool.sum(1), plain.float().sum((1, 2)), truth.sum((1, 2)))


@pytest.mark.parametrize(("shape", "dtype", "batch"), in_turn(SHAPES, DTYPES, BATCHES))
def test_pointwise_conv(shape: Shape, dtype: torch.dtype, batch: int) -> None:
    """At the configuration of so many images of 14x14."""
    wanted = {"inputs": shape[0], "outputs": shape[1], "itemsize": dtype.itemsize}
    check(shape, (3, 3, 3), dtype, configs.pointwise_conv(rows=batch * 196, **wanted))


SIZES = [(1, 7, 7), (3, 3, 7), (2, 1, 1)]
OUTPUTS = [("out",), ("pool",), ("out", "pool")]


@pytest.mark.parametrize(("case", "dtype"), in_turn(itertools.product(SIZES, OUTPUTS, (False, True)), DTYPES))
def test_tiles_across_images(case: tuple[tuple[int, int, int], tuple[str, ...], bool], dtype: torch.dtype) -> None:
    """A tile holds pixels of several images, unless each image's sums are wanted."""
    size, outputs, has_residual = case
    config = {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 32, "num_warps": 4, "num_stages": 2}
    check((40, 72, "hardswish", has_residual, True), size, dtype, config, outputs)
