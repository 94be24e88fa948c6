"""`linear` at both classifier layers of both networks, from vectors and from the parts of a mean."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mbv3fast.config import network
from mbv3fast.reference import linear_ref
from tests.kernels.harness import Guards, run
from tests.numerics import assert_agrees

configs = pytest.importorskip("mbv3fast.kernels.configs")
kernel = pytest.importorskip("mbv3fast.kernels.linear")

NETWORKS = [network("large"), network("small")]
SHAPES = [(c.last_convs[0], c.hidden, "hardswish") for c in NETWORKS] + [(c.hidden, 1000, None) for c in NETWORKS]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "rows", "parts", "pixels"),
    [
        (torch.float32, 1, 1, 1),
        (torch.float16, 3, 2, 49),
        (torch.bfloat16, 1, 3, 100),
        (torch.float16, 19, 1, 1),
        (torch.bfloat16, 9, 2, 49),
        (torch.float32, 9, 3, 100),
    ],
)
def test_linear(shape: tuple[int, int, str | None], dtype: torch.dtype, rows: int, parts: int, pixels: int) -> None:
    (inputs, outputs, activation), guards = shape, Guards()
    sums = torch.float32 if parts > 1 else dtype
    x = guards.randn(rows, parts, inputs, dtype=sums, scale=pixels / parts)
    weight = guards.randn(outputs, inputs, dtype=dtype, scale=inputs**-0.5)
    bias = guards.randn(outputs, dtype=torch.float32)
    out = guards.empty(rows, outputs, dtype=dtype)
    config = configs.linear(rows, outputs, inputs, dtype.itemsize)

    def launch() -> None:
        kernel.linear(x, weight, bias, out=out, pixels=pixels, activation=activation, config=config)

    run(launch, guards, out)

    def reference(kind: torch.dtype) -> Tensor:
        mean = (x.double().sum(1) / pixels).to(kind)
        return linear_ref(mean, weight.to(kind), bias.to(kind), activation=activation)  # type: ignore[arg-type]

    assert_agrees(out, reference(dtype), reference(torch.float64))
