"""`excite_images` at every squeeze-excite of both networks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mbv3fast.reference import GATES, linear_ref
from tests.kernels.harness import BLOCKS, DTYPES, Guards, in_turn, run
from tests.numerics import assert_agrees

configs = pytest.importorskip("mbv3fast.kernels.configs")
kernel = pytest.importorskip("mbv3fast.kernels.excite_images")

SHAPES = sorted({(block.expanded, block.squeeze) for block in BLOCKS if block.squeeze})


def check(
    shape: tuple[int, int],
    images: int,
    parts: int,
    activation: str | None,
    dtype: Any,
    config: Any,
    gate: str = "hardsigmoid",
) -> None:
    (channels, squeezed), pixels, guards = shape, 49, Guards()
    pool = guards.randn(images, parts, channels, dtype=torch.float32, scale=pixels / parts**0.5)
    fc1_weight = guards.randn(squeezed, channels, dtype=dtype, scale=channels**-0.5)
    fc2_weight = guards.randn(channels, squeezed, dtype=dtype, scale=squeezed**-0.5)
    fc1_bias, fc2_bias = (guards.randn(n, dtype=torch.float32) for n in (squeezed, channels))
    scale = guards.empty(images, channels, dtype=torch.float32)

    def launch() -> None:
        tensors = (pool, fc1_weight, fc1_bias, fc2_weight, fc2_bias)
        kernel.excite_images(*tensors, scale=scale, pixels=pixels, activation=activation, gate=gate, config=config)

    run(launch, guards, scale)

    def reference(kind: torch.dtype) -> Tensor:
        mean = (pool.double().sum(1) / pixels).to(kind)
        hidden = linear_ref(mean, fc1_weight.to(kind), fc1_bias, activation=activation)  # type: ignore[arg-type]
        return GATES[gate](linear_ref(hidden, fc2_weight.to(kind), fc2_bias))  # type: ignore[index]

    assert_agrees(scale, reference(dtype).float(), reference(torch.float64))


@pytest.mark.parametrize(("shape", "dtype", "batch"), in_turn(SHAPES, DTYPES, (16, 128)))
def test_excite_images(shape: tuple[int, int], dtype: torch.dtype, batch: int) -> None:
    """At the configuration for so many images, of a narrow dtype."""
    config = configs.excite_images(images=batch, channels=shape[0], squeezed=shape[1], itemsize=2)
    check(shape, 19, 1, "relu", dtype, config)


INPUTS = [(1, "hardswish", "hardsigmoid"), (17, "silu", "sigmoid"), (40, "hardswish", "hardsigmoid")]


@pytest.mark.parametrize(("given", "parts", "dtype"), in_turn(INPUTS, (1, 5), DTYPES))
def test_images_and_parts(given: tuple[int, str, str], parts: int, dtype: torch.dtype) -> None:
    images, activation, gate = given
    config = {"BLOCK_M": 16, "BLOCK_C": 32, "BLOCK_K": 16, "num_warps": 4, "num_stages": 2}
    check((40, 10), images, parts, activation, dtype, config, gate)
