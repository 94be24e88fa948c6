"""`squeeze`, `excite` and `apply_scale`, one after the other, at every squeeze-excite of both networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mbv3fast.config import network
from mbv3fast.reference import squeeze_excite_ref
from tests.kernels.harness import BLOCKS, DTYPES, Guards, in_turn, run
from tests.numerics import assert_agrees

configs = pytest.importorskip("mbv3fast.kernels.configs")
kernels = pytest.importorskip("mbv3fast.kernels.squeeze_excite")

PEERS = [block for variant in ("large", "small") for block in network(variant, se_divisor=8).blocks]  # type: ignore[arg-type]
SHAPES = sorted({(block.expanded, block.squeeze) for block in [*BLOCKS, *PEERS] if block.squeeze})
INPUTS = [  # the batch that configurations are for, a size, the activation between, the gate
    (128, (2, 5, 7), "relu", "hardsigmoid"),
    (1, (1, 9, 8), "hardswish", "hardsigmoid"),
    (1, (3, 1, 1), "relu", "hardsigmoid"),
    (1, (2, 3, 3), "silu", "sigmoid"),
]


@pytest.mark.parametrize(("shape", "dtype", "given"), in_turn(SHAPES, DTYPES, INPUTS))
def test_squeeze_excite(
    shape: tuple[int, int], dtype: torch.dtype, given: tuple[int, tuple[int, int, int], str, str]
) -> None:
    (channels, squeezed), (batch, (images, height, width), activation, gate), guards = shape, given, Guards()
    pixels = height * width
    x = guards.randn(images, height, width, channels, dtype=dtype)
    x.add_(1)
    fc1 = guards.randn(squeezed, channels, dtype=dtype, scale=channels**-0.5)
    fc2 = guards.randn(channels, squeezed, dtype=dtype, scale=squeezed**-0.5)
    bias1, bias2 = (guards.randn(n, dtype=torch.float32) for n in (squeezed, channels))
    config = configs.squeeze(images=batch, pixels=pixels, channels=channels, squeezed=squeezed, itemsize=dtype.itemsize)
    parts = -(-pixels // config["BLOCK_P"]) * -(-channels // config["BLOCK_C"])
    hidden = guards.empty(images, parts, squeezed, dtype=torch.float32)
    scale = guards.empty(images, channels, dtype=torch.float32)
    out = guards.empty(images, height, width, channels, dtype=dtype)

    def launch() -> None:
        kernels.squeeze(x, fc1, pixels=pixels, hidden=hidden, config=config)
        kernels.excite(
            hidden,
            bias1,
            fc2,
            bias2,
            scale=scale,
            pixels=pixels,
            activation=activation,
            gate=gate,
            config=configs.excite(images=batch, parts=parts, channels=channels),
        )
        scaling = configs.apply_scale(rows=batch * pixels, channels=channels, itemsize=dtype.itemsize)
        kernels.apply_scale(x, scale, rows=images * pixels, pixels=pixels, out=out, config=scaling)

    run(launch, guards, hidden, scale, out)

    def reference(kind: torch.dtype) -> Tensor:
        matrices = [tensor.to(kind) for tensor in (fc1, bias1, fc2, bias2)]
        options = {"activation": activation, "gate": gate}
        result = squeeze_excite_ref(x.to(kind).permute(0, 3, 1, 2), *matrices, **options)  # type: ignore[arg-type]
        return result.permute(0, 2, 3, 1)

    assert_agrees(out, reference(dtype), reference(torch.float64))
