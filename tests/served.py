"""Models as a GPU's are served, by stand-ins for the GPU and its kernels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from mbv3fast.fast import FusedMobileNetV3
from tests.networks import trained_small

SHAPE = (2, 3, 40, 52)
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


def subject(**named: Any) -> tuple[FusedMobileNetV3, Tensor]:
    model = copy.deepcopy(trained_small())
    for name, value in {"backend": "triton", **named}.items():
        setattr(model, name, value)
    return model, torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def assert_right(model: FusedMobileNetV3, x: Tensor) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model.reference_forward(x), **TOLERANCE)


def scale(model: FusedMobileNetV3) -> None:
    with torch.no_grad():
        model.features[3].project[0].weight.mul_(1.5)
