"""The first convolution, from images as users have them: float or uint8, any layout, normalised on the way in."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mbv3fast.kernels._common import activate, begin, launch, narrow, one_block
from mbv3fast.kernels.configs import Config


@triton.jit(
    do_not_specialize=[
        "stride_n",
        "stride_c",
        "stride_h",
        "stride_w",
        "height",
        "width",
        "out_height",
        "out_width",
        "top",
        "left",
    ]
)
def _stem_conv_kernel(
    x,  # [images, C, height, width] with strides
    weight,  # [KERNEL * KERNEL * C, N]
    bias,  # [N]
    shift,  # [C] float32 or None: x * factor - shift is what is convolved
    factor,  # [C] float32 or None
    out,  # [images, out_height, out_width, N]
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    height,
    width,
    out_height,
    out_width,
    top,
    left,
    C: tl.constexpr,
    N: tl.constexpr,
    KERNEL: tl.constexpr,
    STRIDE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    PDL: tl.constexpr,
):
    tiles = tl.cdiv(out_height * out_width, BLOCK_P)
    program = tl.program_id(0)
    image = (program // tiles).to(tl.int64)
    pixel = program % tiles * BLOCK_P + tl.arange(0, BLOCK_P)
    row, column = pixel // out_width, pixel % out_width
    n = tl.arange(0, BLOCK_N)
    offset = tl.load(bias + n, n < N, 0.0)
    begin(PDL)
    acc = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for tap in tl.static_range(KERNEL * KERNEL):
        y = row * STRIDE - top + tap // KERNEL
        z = column * STRIDE - left + tap % KERNEL
        inside = (row < out_height) & (y >= 0) & (y < height) & (z >= 0) & (z < width)
        place = image * stride_n + y.to(tl.int64) * stride_h + z.to(tl.int64) * stride_w
        for c in tl.static_range(C):
            value = tl.load(x + place + c * tl.cast(stride_c, tl.int64), inside, 0).to(tl.float32)
            if shift is not None:  # before the zeros of the padding, which stay zeros
                value = tl.where(inside, value * tl.load(factor + c) - tl.load(shift + c), 0.0)
            acc += value[:, None] * tl.load(weight + (tap * C + c) * N + n, n < N, 0.0)[None, :]
    acc = activate(acc + offset[None, :], ACTIVATION)
    place = (image * out_height * out_width + pixel)[:, None] * N + n[None, :]
    tl.store(out + place, narrow(acc, out.dtype.element_ty), (row < out_height)[:, None] & (n < N)[None, :])


def stem_conv(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    factor: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    out: torch.Tensor,
    kernel: int,
    stride: int,
    padding: tuple[int, int, int, int],
    activation: str | None,
    config: Config,
    pdl: bool = False,
) -> None:
    """out = activation(convolution of (x * factor - shift) + bias), zeros padded after the normalisation.

    x [N, C, H, W] of any strides, float or uint8; weight [kernel * kernel * C, C'] in the order row, column, input
    channel, and bias [C'] of any float dtype; factor and shift [C] float32; out [N, H', W', C']. padding as in
    `depthwise_conv`.
    """
    images, channels, height, width = x.shape
    _, out_height, out_width, outputs = out.shape
    launch(
        _stem_conv_kernel,
        images * triton.cdiv(out_height * out_width, config["BLOCK_P"]),
        (x, weight, bias, shift, factor),
        (out,),
        (*x.stride(), height, width, out_height, out_width, padding[2], padding[0]),
        C=channels,
        N=outputs,
        KERNEL=kernel,
        STRIDE=stride,
        ACTIVATION=activation,
        BLOCK_N=one_block(outputs),
        config=config,
        pdl=pdl,
    )
