"""`excite_project` at every squeeze-excite of both networks, also where a launch of its own is counted cheaper."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mbv3fast.reference import GATES, activate, linear_ref, pointwise_conv_ref
from tests.kernels.harness import BATCHES, BLOCKS, DTYPES, Guards, in_turn, run
from tests.numerics import assert_agrees

configs = pytest.importorskip("mbv3fast.kernels.configs")
kernel = pytest.importorskip("mbv3fast.kernels.excite_project")

Shape = tuple[int, int, int, bool]  # inputs, outputs, squeezed, residual
SHAPES = sorted({(b.expanded, b.out_channels, b.squeeze, b.has_residual) for b in BLOCKS if b.squeeze})


def check(
    shape: Shape,
    size: tuple[int, int, int],
    parts: int,
    activation: str | None,
    dtype: torch.dtype,
    config: Any,
    gate: str = "hardsigmoid",
) -> None:
    (inputs, outputs, squeezed, has_residual), (images, height, width), guards = shape, size, Guards()
    pixels = height * width
    x = guards.randn(images, height, width, inputs, dtype=dtype)
    hidden = guards.randn(images, parts, squeezed, dtype=torch.float32, scale=pixels / parts**0.5)
    fc1_bias, fc2_bias, bias = (guards.randn(n, dtype=torch.float32) for n in (squeezed, inputs, outputs))
    fc2_weight = guards.randn(inputs, squeezed, dtype=dtype, scale=squeezed**-0.5)
    weight = guards.randn(outputs, inputs, dtype=dtype, scale=inputs**-0.5)
    residual = guards.randn(images, height, width, outputs, dtype=dtype) if has_residual else None
    out = guards.empty(images, height, width, outputs, dtype=dtype)

    def launch() -> None:
        kernel.excite_project(
            x,
            hidden,
            fc1_bias,
            fc2_weight,
            fc2_bias,
            weight,
            bias,
            pixels=pixels,
            residual=residual,
            out=out,
            activation=activation,
            gate=gate,
            config=config,
        )

    run(launch, guards, out)

    def reference(kind: torch.dtype) -> Tensor:
        squeeze = activate((hidden.to(kind).sum(1) / pixels + fc1_bias.to(kind)), activation)  # type: ignore[arg-type]
        scale = GATES[gate](linear_ref(squeeze, fc2_weight.to(kind), fc2_bias.to(kind)))  # type: ignore[index]
        added = None if residual is None else residual.to(kind).permute(0, 3, 1, 2)
        tensors = (x.to(kind).permute(0, 3, 1, 2), weight.to(kind)[:, :, None, None], bias.to(kind), added, scale)
        return pointwise_conv_ref(*tensors).permute(0, 2, 3, 1)

    assert_agrees(out, reference(dtype), reference(torch.float64))


@pytest.mark.parametrize(("shape", "dtype", "batch"), in_turn(SHAPES, DTYPES, BATCHES))
def test_excite_project(shape: Shape, dtype: torch.dtype, batch: int) -> None:
    """At the blocks for so many images of 14x14."""
    inputs, outputs, squeezed, _ = shape
    config = configs.excite_project_blocks(batch, 196, outputs, inputs, squeezed, 6, dtype.itemsize)
    check(shape, (2, 3, 5), 6, "relu", dtype, config)


GIVEN = [
    ((1, 7, 7), "hardswish", "hardsigmoid"),
    ((3, 1, 1), None, "hardsigmoid"),
    ((3, 5, 7), "silu", "sigmoid"),
]  # a size, the activation between, the gate


@pytest.mark.parametrize(("given", "dtype"), in_turn(GIVEN, DTYPES))
def test_tiles_end_with_their_image(given: tuple[tuple[int, int, int], str | None, str], dtype: torch.dtype) -> None:
    size, activation, gate = given
    config = {"BLOCK_M": 16, "BLOCK_N": 32, "BLOCK_K": 16, "BLOCK_PARTS": 2, "num_warps": 4, "num_stages": 2}
    check((40, 72, 10, True), size, 5, activation, dtype, config, gate)
