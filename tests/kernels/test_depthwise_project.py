"""`depthwise_project` at every block without squeeze-excite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mbv3fast.layers import Padding
from mbv3fast.reference import depthwise_conv_ref, pointwise_conv_ref
from tests.kernels.harness import BLOCKS, DTYPES, Guards, run
from tests.kernels.test_depthwise_conv import output_size
from tests.numerics import assert_agrees

configs = pytest.importorskip("mbv3fast.kernels.configs")
kernel = pytest.importorskip("mbv3fast.kernels.depthwise_project")

# (channels, outputs, kernel, stride, activation, residual)
SHAPES = sorted(
    {(b.expanded, b.out_channels, b.kernel, b.stride, b.activation, b.has_residual) for b in BLOCKS if not b.squeeze}
)


def check(
    shape: tuple[int, int, int, int, str, bool],
    size: tuple[int, int, int],
    dtype: torch.dtype,
    config: dict[str, Any],
    padding: Padding | None = None,
) -> None:
    (channels, outputs, taps, stride, activation, has_residual), guards = shape, Guards()
    images, height, width = size
    left, right, top, bottom = padding = padding or (taps // 2,) * 4
    out_height = output_size(height, taps, stride, top, bottom, 1)
    out_width = output_size(width, taps, stride, left, right, 1)
    x = guards.randn(images, height, width, channels, dtype=dtype)
    weight = guards.randn(taps * taps, channels, dtype=dtype, scale=1 / taps)
    project = guards.randn(outputs, channels, dtype=dtype, scale=channels**-0.5)
    bias, project_bias = (guards.randn(n, dtype=torch.float32) for n in (channels, outputs))
    residual = guards.randn(images, out_height, out_width, outputs, dtype=dtype) if has_residual else None
    out = guards.empty(images, out_height, out_width, outputs, dtype=dtype)

    def launch() -> None:
        kernel.depthwise_project(
            x,
            weight,
            bias,
            project,
            project_bias,
            residual=residual,
            out=out,
            kernel=taps,
            stride=stride,
            padding=padding,
            activation=activation,
            config=config,
        )

    run(launch, guards, out)

    def reference(kind: torch.dtype) -> Tensor:
        square = weight.to(kind).T.reshape(channels, 1, taps, taps)
        depthwise = depthwise_conv_ref(
            x.to(kind).permute(0, 3, 1, 2),
            square,
            bias.to(kind),
            stride=stride,
            padding=padding,
            activation=activation,  # type: ignore[arg-type]
        )
        added = None if residual is None else residual.to(kind).permute(0, 3, 1, 2)
        matrix = project.to(kind)[:, :, None, None]
        return pointwise_conv_ref(depthwise, added, weight=matrix, bias=project_bias.to(kind)).permute(0, 2, 3, 1)

    assert_agrees(out, reference(dtype), reference(torch.float64))


@pytest.mark.parametrize(("dtype", "images"), [(torch.float32, 1), (torch.float16, 128), (torch.bfloat16, 128)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_depthwise_project(shape: tuple[int, int, int, int, str, bool], dtype: torch.dtype, images: int) -> None:
    """At the configuration of so many images of 56x56."""
    check(shape, (2, 9, 7), dtype, configs.depthwise_project(images, 56, 56, shape[2]))


@pytest.mark.parametrize("padding", [(0, 1, 0, 1), (1, 2, 2, 1)])
@pytest.mark.parametrize("stride", [1, 2])
def test_paddings_that_differ_from_side_to_side(padding: Padding, stride: int) -> None:
    for dtype in DTYPES:
        config = configs.depthwise_project(1, 9, 12, 3)
        check((24, 40, 3, stride, "hardswish", True), (3, 9, 12), dtype, config, padding)
