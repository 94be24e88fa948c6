"""Single ops by the CUDA kernels, emulated: every case of the ops' own tests, on whichever kernel covers it."""

from __future__ import annotations

from ctypes import CDLL

import pytest
import torch

from mbv3fast import ops
from mbv3fast.backend import ENVIRONMENT, op_backend, op_server
from mbv3fast.launching import watch_launches
from tests.numerics import assert_agrees
from tests.op_cases import CASES, call, make, refer

CPU = torch.device("cpu")
COVERED = {
    "pointwise": ["pointwise_conv"],
    "pointwise on a pixel": ["pointwise_conv"],
    "depthwise on a column": ["depthwise_conv"],
    "inverted residual": ["inverted_residual"],
    "inverted residual with excite": ["inverted_residual", "excite", "pointwise_conv"],
    "excite": ["squeeze_excite"],
}


@pytest.fixture(autouse=True)
def _asked_for(emulation: CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    del emulation  # it is there
    monkeypatch.setenv(ENVIRONMENT, "cuda")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_ops(name: str, dtype: torch.dtype) -> None:
    tensors, seen = make(name, dtype), []
    with torch.inference_mode(), watch_launches(seen.append):
        outputs = call(name, tensors)
    assert [launch.kernel.__name__ for launch in seen] == COVERED.get(name, []), "PyTorch computes all others"
    for got, plain, truth in zip(outputs, refer(name, tensors), refer(name, tensors, torch.float64), strict=True):
        assert_agrees(got, plain, truth)


@pytest.mark.parametrize("name", COVERED)
def test_an_empty_batch(name: str) -> None:
    with torch.inference_mode():
        (out,) = call(name, make(name, torch.half, N=0))
    assert out.shape[0] == 0


def test_biases_of_the_tensors_own_dtype() -> None:
    tensors = make("inverted residual with excite", torch.half, bias=torch.half)
    with torch.inference_mode():
        (got,), (plain,), (truth,) = (
            call("inverted residual with excite", tensors),
            refer("inverted residual with excite", tensors),
            refer("inverted residual with excite", tensors, torch.float64),
        )
    assert_agrees(got, plain, truth)


def test_a_residual_that_is_the_input_is_read_once() -> None:
    tensors = make("inverted residual with excite", torch.half)
    for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias"):
        del tensors[name]
    seen = []
    tensors["x"] = tensors["x"].contiguous(memory_format=torch.channels_last)
    with torch.inference_mode(), watch_launches(seen.append):
        same = ops.inverted_residual(**tensors | {"residual": tensors["x"]}, padding=1, activation="relu")
        copied = ops.inverted_residual(**tensors | {"residual": tensors["x"].clone()}, padding=1, activation="relu")
    assert [launch.sizes["adds_input"] for launch in seen] == [True, False]
    assert torch.equal(same, copied)


def test_float32_and_other_devices_are_not_cudas() -> None:
    assert op_backend(CPU, torch.half) == "cuda"
    assert op_backend(CPU, torch.float32) == "torch"
    assert op_server(CPU, torch.half) == "our kernels in CUDA, emulated"
