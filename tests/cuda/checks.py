"""Each CUDA kernel of convolutions on random tensors, held to its reference by the rule of `numerics`."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from mbv3fast.config import BlockConfig
from mbv3fast.cuda.depthwise_conv import count_tiles, depthwise_conv
from mbv3fast.cuda.inverted_residual import inverted_residual
from mbv3fast.cuda.launch import Tile
from mbv3fast.cuda.pointwise_conv import pointwise_conv
from mbv3fast.layers import Padding
from mbv3fast.reference import depthwise_conv_ref, pointwise_conv_ref
from mbv3fast.tables import Activation
from tests.cuda.harness import Window, run, square, sums_of_tiles
from tests.guards import Guards
from tests.numerics import assert_agrees

Size = tuple[int, int, int]  # images, height, width
HALF = torch.float16


def nchw(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype).permute(0, 3, 1, 2)


def check_depthwise_conv(
    library: ctypes.CDLL,
    channels: int,
    window: Window,
    activation: Activation | None,
    tile: Tile,
    size: Size,
    dtype: torch.dtype = HALF,
    *,
    pooled: bool = True,
    seeds: Iterable[int] = (0,),
) -> None:
    (images, height, width), guards, taps = size, Guards(), window.kernel**2
    out_size = window.out_size(height, width)
    x = guards.randn(images, height, width, channels, dtype=dtype)
    weight = guards.randn(taps, channels, dtype=dtype, scale=1 / window.kernel)
    bias = guards.randn(channels, dtype=torch.float32)
    out = guards.empty(images, *out_size, channels, dtype=dtype)
    pool = guards.empty(images, count_tiles(*out_size, tile), channels, dtype=torch.float32) if pooled else None
    options = {**window._asdict(), "activation": activation}
    tensors = (out,) if pool is None else (out, pool)

    def launch() -> None:
        depthwise_conv(x, weight, bias, out=out, pool=pool, **options, tile=tile, pdl=True)

    run(library, launch, guards, *tensors, seeds=seeds)

    def reference(kind: torch.dtype) -> Tensor:
        given = {name: option for name, option in options.items() if name != "kernel"}
        taps = square(weight.to(kind), window.kernel)
        return depthwise_conv_ref(nchw(x, kind), taps, bias.to(kind), **given).permute(0, 2, 3, 1)

    truth, plain = reference(torch.float64), reference(dtype)
    assert_agrees(out, plain, truth)
    if pool is not None:
        assert_sums_agree(pool, plain, truth, tile)


def check_pointwise_conv(
    library: ctypes.CDLL,
    inputs: int,
    outputs: int,
    activation: Activation | None,
    tile: Tile,
    size: Size,
    dtype: torch.dtype = HALF,
    *,
    scaled: bool = False,
    added: bool = False,
    seeds: Iterable[int] = (0,),
) -> None:
    (images, height, width), guards = size, Guards()
    x = guards.randn(images, height, width, inputs, dtype=dtype)
    weight = guards.randn(outputs, inputs, dtype=dtype, scale=inputs**-0.5)
    bias = guards.randn(outputs, dtype=torch.float32)
    scale = guards.hold(guards.randn(images, inputs, dtype=torch.float32).sigmoid()) if scaled else None
    residual = guards.randn(images, height, width, outputs, dtype=dtype) if added else None
    out = guards.empty(images, height, width, outputs, dtype=dtype)
    extras = {"scale": scale, "residual": residual}

    def launch() -> None:
        pointwise_conv(x, weight, bias, out=out, **extras, activation=activation, tile=tile, pdl=True)

    run(library, launch, guards, out, seeds=seeds)

    def reference(kind: torch.dtype) -> Tensor:
        tensors = weight.to(kind)[:, :, None, None], bias.to(kind), None if residual is None else nchw(residual, kind)
        factor = None if scale is None else scale.to(kind if kind is torch.float64 else torch.float32)
        return pointwise_conv_ref(nchw(x, kind), *tensors, factor, activation=activation).permute(0, 2, 3, 1)

    assert_agrees(out, reference(dtype), reference(torch.float64))


class Block(NamedTuple):
    """An inverted residual as the kernel has it. outputs: 0 where squeeze-excite follows; inputs: those of x, which is
    what others expand to where they are as many as channels.
    """

    inputs: int
    channels: int
    outputs: int
    kernel: int
    stride: int
    activation: Activation
    residual: bool = False

    @classmethod
    def of(cls, config: BlockConfig) -> Block:
        outputs = 0 if config.squeeze else config.out_channels
        geometry = config.kernel, config.stride, config.activation
        return cls(config.in_channels, config.expanded, outputs, *geometry, config.has_residual and outputs > 0)

    @property
    def expands(self) -> bool:
        return self.inputs != self.channels

    @property
    def padding(self) -> Padding:
        return (self.kernel // 2,) * 4


def check_inverted_residual(
    library: ctypes.CDLL,
    block: Block,
    tile: Tile,
    size: Size,
    dtype: torch.dtype = HALF,
    *,
    padding: Padding | None = None,
    other_residual: bool = False,
    seeds: Iterable[int] = (0,),
) -> None:
    """other_residual: the block's residual, if it has one, is not x."""
    (images, height, width), guards = size, Guards()
    inputs, channels, outputs, kernel, stride, activation, residual = block
    window = Window(kernel, stride, padding or block.padding)
    out_size = window.out_size(height, width)
    x = guards.randn(images, height, width, inputs, dtype=dtype)
    expand = guards.randn(channels, inputs, dtype=dtype, scale=inputs**-0.5) if block.expands else None
    expand_bias = guards.randn(channels, dtype=torch.float32) if block.expands else None
    weight = guards.randn(kernel**2, channels, dtype=dtype, scale=1 / kernel)
    bias = guards.randn(channels, dtype=torch.float32)
    project = guards.randn(outputs, channels, dtype=dtype, scale=channels**-0.5) if outputs else None
    project_bias = guards.randn(outputs, dtype=torch.float32) if outputs else None
    added = guards.randn(images, *out_size, outputs, dtype=dtype) if other_residual else x if residual else None
    out = guards.empty(images, *out_size, outputs or channels, dtype=dtype)
    pool = None if outputs else guards.empty(images, count_tiles(*out_size, tile), channels, dtype=torch.float32)
    tensors = (out,) if pool is None else (out, pool)
    options = {**window._asdict(), "activation": activation, "tile": tile, "pdl": True}

    def launch() -> None:
        weights = expand, expand_bias, weight, bias, project, project_bias
        inverted_residual(x, *weights, residual=added, out=out, pool=pool, **options)

    run(library, launch, guards, *tensors, seeds=seeds)

    def reference(kind: torch.dtype) -> Tensor:
        y = nchw(x, kind)
        if expand is not None and expand_bias is not None:
            y = pointwise_conv_ref(y, expand.to(kind)[:, :, None, None], expand_bias, activation=activation)
        given = {"stride": stride, "padding": window.padding, "activation": activation}
        y = depthwise_conv_ref(y, square(weight.to(kind), kernel), bias, **given)
        if project is not None and project_bias is not None:
            last = None if added is None else nchw(added, kind)
            y = pointwise_conv_ref(y, project.to(kind)[:, :, None, None], project_bias, last)
        return y.permute(0, 2, 3, 1)

    truth, plain = reference(torch.float64), reference(dtype)
    assert_agrees(out, plain, truth)
    if pool is not None:
        assert_sums_agree(pool, plain, truth, tile)


def assert_sums_agree(pool: Tensor, plain: Tensor, truth: Tensor, tile: Tile) -> None:
    """Each tile's sums keep the rule beside PyTorch's output, summed in float32."""
    size = tile["tile_height"], tile["tile_width"]
    assert_agrees(pool, sums_of_tiles(plain.float(), *size), sums_of_tiles(truth, *size))
