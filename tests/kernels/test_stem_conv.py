"""`stem_conv` from floats and bytes, in every layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mbv3fast.layers import Padding
from mbv3fast.preprocess import IMAGENET_MEAN, IMAGENET_STD
from mbv3fast.reference import stem_conv_ref
from tests.kernels.harness import DTYPES, Guards, run
from tests.numerics import assert_agrees

configs = pytest.importorskip("mbv3fast.kernels.configs")
kernel = pytest.importorskip("mbv3fast.kernels.stem_conv")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", ["NCHW", "channels_last", "NHWC bytes", "NCHW bytes"])
@pytest.mark.parametrize(
    ("size", "outputs", "channels", "padding"),
    [
        ((2, 17, 12), 16, 3, (1, 1, 1, 1)),
        ((1, 9, 13), 24, 1, (1, 1, 1, 1)),
        ((2, 8, 8), 40, 4, (0, 1, 0, 1)),
    ],
)
def test_stem_conv(
    dtype: torch.dtype, given: str, size: tuple[int, int, int], outputs: int, channels: int, padding: Padding
) -> None:
    (images, height, width), guards = size, Guards()
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
            config=configs.stem_conv(images, out_height * out_width),
        )

    run(launch, guards, out)

    def reference(kind: torch.dtype) -> Tensor:
        square = weight.to(kind).T.reshape(outputs, 3, 3, channels).permute(0, 3, 1, 2)
        values = x.double()
        if is_bytes:
            values = (values / 255 - mean.double()[:, None, None]) / std.double()[:, None, None]
        return stem_conv_ref(values.to(kind), square, bias.to(kind), **geometry).permute(0, 2, 3, 1)  # type: ignore[arg-type]

    assert_agrees(out, reference(dtype), reference(torch.float64))
