"""`stem_conv` from floats and bytes, in every layout."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from mbv3fast.layers import Padding
from mbv3fast.preprocess import IMAGENET_MEAN, IMAGENET_STD
from mbv3fast.reference import stem_conv_ref
from tests.kernels.harness import DTYPES, Guards, in_turn, run
from tests.numerics import assert_agrees

configs = pytest.importorskip("mbv3fast.kernels.configs")
kernel = pytest.importorskip("mbv3fast.kernels.stem_conv")

SHAPES = [  # of the input, channels of the output, padding, batch that the configuration is for
    ((3, 3, 9, 11), 16, (1, 1, 1, 1), 1),
    ((2, 3, 9, 31), 16, (1, 2, 3, 0), 128),
    ((1, 1, 9, 13), 24, (1, 1, 1, 1), 1),
    ((2, 4, 8, 8), 40, (0, 1, 0, 1), 128),
]
LAYOUTS = ["NCHW", "channels_last", "NHWC bytes", "NCHW bytes"]


@pytest.mark.parametrize(("case", "dtype"), in_turn(itertools.product(SHAPES, LAYOUTS), DTYPES))
def test_stem_conv(case: tuple[tuple[tuple[int, int, int, int], int, Padding, int], str], dtype: torch.dtype) -> None:
    """At the configuration of so many images of 224x224."""
    ((images, channels, height, width), outputs, padding, batch), given = case
    guards = Guards()
    is_bytes = given.endswith("bytes")
    if is_bytes:
        x = torch.randint(0, 256, (images, channels, height, width), dtype=torch.uint8)
    else:
        x = guards.randn(images, channels, height, width, dtype=dtype)
    if given in ("channels_last", "NHWC bytes"):
        x = guards.hold(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    mean, std = (torch.tensor((values * 2)[:channels]) for values in (IMAGENET_MEAN, IMAGENET_STD))
    factor, shift = (guards.hold(1 / (255 * std)), guards.hold(mean / std)) if is_bytes else (None, None)
    weight = guards.randn(9 * channels, outputs, dtype=torch.float32, scale=0.2)
    bias = guards.randn(outputs, dtype=torch.float32)
    left, right, top, bottom = padding
    out_height, out_width = (height + top + bottom - 3) // 2 + 1, (width + left + right - 3) // 2 + 1
    out = guards.empty(images, out_height, out_width, outputs, dtype=dtype)
    geometry = {"stride": 2, "padding": padding, "activation": "hardswish"}

    def launch() -> None:
        kernel.stem_conv(
            x,
            weight,
            bias,
            **{"factor": factor, "shift": shift, "out": out, "kernel": 3, **geometry},
            config=configs.stem_conv(images=batch, pixels=112 * 112),
        )

    run(launch, guards, out)

    def reference(kind: torch.dtype) -> Tensor:
        square = weight.to(kind).T.reshape(outputs, 3, 3, channels).permute(0, 3, 1, 2)
        values = x.double()
        if is_bytes:
            values = (values / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
        return stem_conv_ref(values.to(kind), square, bias.to(kind), **geometry).permute(0, 2, 3, 1)  # type: ignore[arg-type]

    assert_agrees(out, reference(dtype), reference(torch.float64))
