"""`depthwise_conv` at every shape of both networks: its output, its sums, and fc1 of these."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mbv3fast.layers import Padding
from mbv3fast.reference import depthwise_conv_ref
from tests.kernels.harness import BATCHES, BLOCKS, DTYPES, Guards, in_turn, run
from tests.numerics import assert_agrees

configs = pytest.importorskip("mbv3fast.kernels.configs")
kernel = pytest.importorskip("mbv3fast.kernels.depthwise_conv")

Shape = tuple[int, int, int, str, int]  # channels, kernel, stride, activation, width of fc1
SHAPES = sorted({(b.expanded, b.kernel, b.stride, b.activation, b.squeeze) for b in BLOCKS})


def output_size(size: int, kernel: int, stride: int, before: int, after: int, dilation: int) -> int:
    return (size + before + after - dilation * (kernel - 1) - 1) // stride + 1


def check(
    shape: Shape,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    config: dict[str, Any],
    padding: Padding | None = None,
    dilation: int = 1,
) -> None:
    (channels, taps, stride, activation, squeeze), (images, height, width), guards = shape, size, Guards()
    left, right, top, bottom = padding = padding or (taps // 2,) * 4
    out_height = output_size(height, taps, stride, top, bottom, dilation)
    out_width = output_size(width, taps, stride, left, right, dilation)
    x = guards.randn(images, height, width, channels, dtype=dtype)
    weight = guards.randn(taps * taps, channels, dtype=dtype, scale=1 / taps)
    bias = guards.randn(channels, dtype=torch.float32)
    fc1 = guards.randn(squeeze, channels, dtype=dtype, scale=channels**-0.5) if squeeze else None
    tiles = -(-out_height // config["TILE_H"]) * -(-out_width // config["TILE_W"])
    out = guards.empty(images, out_height, out_width, channels, dtype=dtype)
    pool = guards.empty(images, tiles, channels, dtype=torch.float32)
    parts = tiles * -(-channels // config["BLOCK_C"])
    hidden = guards.empty(images, parts, squeeze, dtype=torch.float32) if fc1 is not None else None
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "activation": activation}

    def launch() -> None:
        kernel.depthwise_conv(
            x,
            weight,
            bias,
            out=out,
            pool=pool,
            fc1_weight=fc1,
            hidden=hidden,
            **{"kernel": taps, "config": config, **geometry},
        )

    run(launch, guards, *[tensor for tensor in (out, pool, hidden) if tensor is not None])

    def reference(kind: torch.dtype) -> Tensor:
        square = weight.to(kind).T.reshape(channels, 1, taps, taps)
        result = depthwise_conv_ref(x.to(kind).permute(0, 3, 1, 2), square, bias.to(kind), **geometry)  # type: ignore[arg-type]
        return result.permute(0, 2, 3, 1)

    truth, plain = reference(torch.float64), reference(dtype)
    assert_agrees(out, plain, truth)
    assert_agrees(pool.sum(1), plain.float().sum((1, 2)), truth.sum((1, 2)))
    if hidden is not None and fc1 is not None:
        expected = truth.sum((1, 2)) @ fc1.double().T
        assert_agrees(hidden.sum(1), plain.float().sum((1, 2)) @ fc1.float().T, expected)


def configured(shape: Shape, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """The configuration of so many images of 14x14."""
    channels, taps, _, _, squeeze = shape
    wanted = {"channels": channels, "kernel": taps, "squeeze": squeeze, "itemsize": dtype.itemsize}
    return configs.depthwise_conv(images=batch, out_height=14, out_width=14, **wanted)


@pytest.mark.parametrize(("shape", "dtype", "batch"), in_turn(SHAPES, DTYPES, BATCHES))
def test_depthwise_conv(shape: Shape, dtype: torch.dtype, batch: int) -> None:
    """On one tile, whose programs are the blocks of channels."""
    check(shape, (1, 3, 7), dtype, configured(shape, batch, dtype))


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_depthwise_conv_of_several_tiles(shape: Shape) -> None:
    check(shape, (2, 7, 9), torch.float16, configured(shape, 128, torch.float16))


SMALL = {"TILE_H": 4, "TILE_W": 8, "BLOCK_C": 16, "BLOCK_S": 16, "UNROLL": 1, "num_warps": 4}
PADDINGS = [((0, 1, 0, 1), 1), ((1, 2, 3, 0), 1), ((3, 1, 2, 3), 2), ((0, 0, 0, 0), 1)]  # and dilations


@pytest.mark.parametrize(
    ("geometry", "size", "dtype"),
    in_turn(itertools.product(PADDINGS, (3, 5), (1, 2)), [(1, 7, 9), (3, 5, 6)], DTYPES),
)
def test_paddings_and_dilations(
    geometry: tuple[tuple[Padding, int], int, int], size: tuple[int, int, int], dtype: torch.dtype
) -> None:
    (padding, dilation), taps, stride = geometry
    check((24, taps, stride, "hardswish", 6), size, dtype, SMALL, padding, dilation)


@pytest.mark.slow
@pytest.mark.parametrize("unroll", [1, 5, 25])
def test_unrolled_taps_give_the_same(unroll: int) -> None:
    check((40, 5, 2, "relu", 10), (2, 9, 7), torch.float16, {**SMALL, "UNROLL": unroll})
