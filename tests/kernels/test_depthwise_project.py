"""`depthwise_project` at every block without squeeze-excite."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from mbv3fast.layers import Padding
from mbv3fast.reference import depthwise_project_ref
from tests.kernels.harness import BATCHES, BLOCKS, DTYPES, Guards, in_turn, run
from tests.kernels.test_depthwise_conv import output_size
from tests.numerics import assert_agrees

configs = pytest.importorskip("mbv3fast.kernels.configs")
kernel = pytest.importorskip("mbv3fast.kernels.depthwise_project")

Shape = tuple[int, int, int, int, str, bool]  # channels, outputs, kernel, stride, activation, residual
SHAPES = sorted(
    {(b.expanded, b.out_channels, b.kernel, b.stride, b.activation, b.has_residual) for b in BLOCKS if not b.squeeze}
)


def check(
    shape: Shape,
    size: tuple[int, int, int],
    dtype: torch.dtype,
    config: dict[str, Any],
    padding: Padding | None = None,
    dilation: int = 1,
) -> None:
    (channels, outputs, taps, stride, activation, has_residual), guards = shape, Guards()
    images, height, width = size
    left, right, top, bottom = padding = padding or (taps // 2,) * 4
    out_height = output_size(height, taps, stride, top, bottom, dilation)
    out_width = output_size(width, taps, stride, left, right, dilation)
    x = guards.randn(images, height, width, channels, dtype=dtype)
    weight = guards.randn(taps * taps, channels, dtype=dtype, scale=1 / taps)
    project = guards.randn(outputs, channels, dtype=dtype, scale=channels**-0.5)
    bias, project_bias = (guards.randn(n, dtype=torch.float32) for n in (channels, outputs))
    residual = guards.randn(images, out_height, out_width, outputs, dtype=dtype) if has_residual else None
    out = guards.empty(images, out_height, out_width, outputs, dtype=dtype)
    geometry = {"stride": stride, "padding": padding, "dilation": dilation, "activation": activation}

    def launch() -> None:
        kernel.depthwise_project(
            x,
            weight,
            bias,
            project,
            project_bias,
            residual=residual,
            out=out,
            **{"kernel": taps, "config": config, **geometry},
        )

    run(launch, guards, out)

    def reference(kind: torch.dtype) -> Tensor:
        square = weight.to(kind).T.reshape(channels, 1, taps, taps)
        added = None if residual is None else residual.to(kind).permute(0, 3, 1, 2)
        matrices = (square, bias.to(kind), project.to(kind)[:, :, None, None], project_bias.to(kind))
        result = depthwise_project_ref(x.to(kind).permute(0, 3, 1, 2), *matrices, added, **geometry)  # type: ignore[arg-type]
        return result.permute(0, 2, 3, 1)

    assert_agrees(out, reference(dtype), reference(torch.float64))


def configured(shape: Shape, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """The configuration of so many images of 56x56."""
    channels, outputs, taps, *_ = shape
    wanted = {"channels": channels, "outputs": outputs, "kernel": taps, "itemsize": dtype.itemsize}
    return configs.depthwise_project(images=batch, out_height=56, out_width=56, **wanted)


@pytest.mark.parametrize(("shape", "dtype", "batch"), in_turn(SHAPES, DTYPES, BATCHES))
def test_depthwise_project(shape: Shape, dtype: torch.dtype, batch: int) -> None:
    """On two tiles, one below the other or side by side, or with a stride on one."""
    check(shape, (1, 5, 7) if batch == 1 else (1, 3, 9), dtype, configured(shape, batch, dtype))


PADDINGS = [((0, 1, 0, 1), 1), ((1, 2, 3, 0), 1), ((3, 1, 2, 3), 2)]  # and dilations


@pytest.mark.parametrize(("geometry", "dtype"), in_turn(itertools.product(PADDINGS, (1, 2)), DTYPES))
def test_paddings_and_dilations(geometry: tuple[tuple[Padding, int], int], dtype: torch.dtype) -> None:
    (padding, dilation), stride = geometry
    shape = (24, 40, 3, stride, "hardswish", True)
    check(shape, (3, 5, 6), dtype, configured(shape, 1, dtype), padding, dilation)
