"""`linear` at both classifier layers of both networks, from vectors and from the parts of a mean."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from mbv3fast.config import network
from mbv3fast.reference import linear_ref
from tests.kernels.harness import DTYPES, Guards, in_turn, run
from tests.numerics import assert_agrees

configs = pytest.importorskip("mbv3fast.kernels.configs")
kernel = pytest.importorskip("mbv3fast.kernels.linear")

NETWORKS = [network("large"), network("small")]
LAYERS = [(c.last_convs[0], c.hidden, "hardswish") for c in NETWORKS] + [(c.hidden, 1000, None) for c in NETWORKS]
Layer = tuple[int, int, str | None]
Mean = tuple[int, int]  # parts, and the pixels that they are sums of


def check(layer: Layer, rows: int, mean: Mean, dtype: torch.dtype, config: Mapping[str, int]) -> None:
    (inputs, outputs, activation), (parts, pixels), guards = layer, mean, Guards()
    sums = torch.float32 if parts > 1 else dtype
    x = guards.randn(rows, parts, inputs, dtype=sums, scale=pixels / parts)
    weight = guards.randn(outputs, inputs, dtype=dtype, scale=inputs**-0.5)
    bias = guards.randn(outputs, dtype=torch.float32)
    out = guards.empty(rows, outputs, dtype=dtype)

    def launch() -> None:
        kernel.linear(x, weight, bias, out=out, pixels=pixels, activation=activation, config=config)

    run(launch, guards, out)

    def reference(kind: torch.dtype) -> Tensor:
        mean = (x.double().sum(1) / pixels).to(kind)
        return linear_ref(mean, weight.to(kind), bias.to(kind), activation=activation)  # type: ignore[arg-type]

    assert_agrees(out, reference(dtype), reference(torch.float64))


def configured(layer: Layer, batch: int, dtype: torch.dtype) -> Mapping[str, int]:
    return configs.linear(rows=batch, outputs=layer[1], inputs=layer[0], itemsize=dtype.itemsize)


CASES = [  # the batch a configuration is for, rows, mean, dtype; the first are those of the default tier
    (1024, 9, (2, 49), torch.float16),
    (1, 1, (1, 1), torch.float32),
    (1024, 19, (1, 1), torch.float16),
    (1, 1, (1, 1), torch.bfloat16),
    (1, 1, (3, 100), torch.bfloat16),
    (1, 3, (2, 49), torch.float16),
    (1024, 70, (2, 49), torch.bfloat16),
    (1024, 9, (3, 100), torch.float32),
    (16, 19, (1, 1), torch.float16),
    (16, 9, (2, 49), torch.bfloat16),
    (16, 9, (3, 100), torch.float32),
]


@pytest.mark.parametrize(("layer", "case"), in_turn(LAYERS, CASES))
def test_linear(layer: Layer, case: tuple[int, int, Mean, torch.dtype]) -> None:
    batch, rows, mean, dtype = case
    check(layer, rows, mean, dtype, configured(layer, batch, dtype))


@pytest.mark.parametrize(("layer", "mean", "dtype"), in_turn(LAYERS, [(3, 100), (2, 49), (1, 1)], DTYPES))
def test_linear_of_few_rows(layer: Layer, mean: Mean, dtype: torch.dtype) -> None:
    """In as few programs as may be."""
    check(layer, 3, mean, dtype, {**configured(layer, 1, dtype), "BLOCK_N": 128, "BLOCK_K": 256})
