"""Single ops by the CUDA kernels, emulated: every case of the ops' own tests, on whichever kernel covers it."""

from __future__ import annotations

import itertools
from ctypes import CDLL
from typing import Any

import pytest
import torch

from mbv3fast import backend, ops
from mbv3fast.backend import ENVIRONMENT, op_backend, op_server
from mbv3fast.cuda.tiles import excite
from mbv3fast.launching import watch_launches
from tests.cuda.test_refused import BUFFER
from tests.cuda.test_refused import call as call_c
from tests.cuda.test_squeeze_excite import Case
from tests.numerics import assert_agrees
from tests.op_cases import CASES, call, make, refer
from tests.test_activations import check, wide, with_others

CPU = torch.device("cpu")
DTYPES = (torch.float16, torch.bfloat16)
COVERED = {
    "pointwise": ["pointwise_conv"],
    "pointwise on a pixel": ["pointwise_conv"],
    "depthwise on a column": ["depthwise_conv"],
    "inverted residual": ["inverted_residual"],
    "inverted residual with excite": ["inverted_residual", "excite", "pointwise_conv"],
    "excite": ["squeeze_excite"],
}
OTHERS = with_others(name for name in COVERED if name != "inverted residual")  # which takes options for no excite


@pytest.fixture(autouse=True)
def _asked_for(emulation: CDLL, monkeypatch: pytest.MonkeyPatch) -> None:
    del emulation  # it is there
    monkeypatch.setenv(ENVIRONMENT, "cuda")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CASES)
def test_ops(name: str, dtype: torch.dtype) -> None:
    tensors, seen = make(name, dtype), []
    with torch.inference_mode(), watch_launches(seen.append):
        outputs = call(name, tensors)
    assert [launch.kernel.__name__ for launch in seen] == COVERED.get(name, []), "PyTorch computes all others"
    for got, plain, truth in zip(outputs, refer(name, tensors), refer(name, tensors, torch.float64), strict=True):
        assert_agrees(got, plain, truth)


@pytest.mark.parametrize(("name", "options", "dtype"), [(*c, d) for c, d in zip(OTHERS, itertools.cycle(DTYPES))])
def test_activations_that_are_not_cudas(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    """Others compute what they stand in, right all the same."""
    seen: list[Any] = []
    with torch.inference_mode(), watch_launches(seen.append):
        check(name, wide(name, dtype), options)
    assert {launch.constants["ACTIVATION"] for launch in seen} <= {None, "relu", "hardswish"}
    assert "excite" not in {launch.kernel.__name__ for launch in seen}
    assert not seen or name == "inverted residual with excite", "which begins with a convolution that may be CUDA's"


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


def unaligned(tensor: torch.Tensor) -> torch.Tensor:
    """The same, in memory that begins two bytes behind a multiple of 16, or four."""
    whole = torch.zeros(tensor.numel() + 16, dtype=tensor.dtype)
    flat = whole[1 + (-whole.data_ptr() // tensor.element_size()) % (16 // tensor.element_size()) :][: tensor.numel()]
    copy = torch.as_strided(flat, tensor.shape, tensor.stride()) if tensor.is_contiguous() else tensor
    assert copy is tensor or copy.data_ptr() % 16 != 0
    return copy if copy is tensor else copy.copy_(tensor)


@pytest.mark.parametrize("name", COVERED)
def test_views_that_begin_anywhere(name: str) -> None:
    tensors, seen = make(name, torch.half), []
    moved = {key: t if t is None else unaligned(t.contiguous()) for key, t in tensors.items()}
    with torch.inference_mode(), watch_launches(seen.append):
        pairs = list(zip(call(name, tensors), call(name, moved), strict=True))
    assert [launch.kernel.__name__ for launch in seen] == 2 * COVERED[name]
    assert all(torch.equal(*pair) for pair in pairs)


@pytest.mark.parametrize(("channels", "squeezed", "covered"), [(2048, 512, True), (2056, 8, False), (16, 513, False)])
def test_squeeze_excites_that_shared_memory_has_no_room_for(channels: int, squeezed: int, covered: bool) -> None:
    """They aren't CUDA's; the largest that are run on every chip, few images and many."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    x = random(1, channels, 2, 2).half()
    tensors = [random(squeezed, channels).half() / 50, random(squeezed), random(channels, squeezed).half() / 25]
    seen = []
    with torch.inference_mode(), watch_launches(seen.append):
        got = ops.squeeze_excite(x, *tensors, random(channels), activation="relu")
    assert bool(seen) == covered
    assert got.isfinite().all()


@pytest.mark.parametrize("capability", [80, 86, 90, 100, 120])
@pytest.mark.parametrize("images", [1, 9])
def test_the_largest_squeeze_excite_fits_every_chip(emulation: CDLL, capability: int, images: int) -> None:
    emulation.mbv3fast_emulate(capability, 0)
    case = Case(emulation, 2048, 512, images=images, pixels=1)
    for together in (1, 8):
        cluster = excite(images, 2048, 512, capability=capability)["cluster"]
        case.agrees_in_float32(case.excite(cluster, together, two=cluster == 1, capability=capability))
    code, said = call_c(
        emulation, "pointwise_conv", scale=BUFFER.data_ptr(), inputs=2048, tile_rows=128, tile_outputs=80
    )
    assert code == 0, said


def test_what_cannot_be_served_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    backend._say_once.cache_clear()
    x, weight = torch.ones(1, 8, 3, 3), torch.ones(8, 8, 1, 1)
    for _ in range(2):
        ops.pointwise_conv(x, weight, torch.zeros(8), activation=None)
    assert caplog.text.count("MBV3FAST_BACKEND: 'cuda' doesn't serve single ops of torch.float32 on cpu") == 1


def test_float32_and_other_devices_are_not_cudas() -> None:
    assert op_backend(CPU, torch.half) == "cuda"
    assert op_backend(CPU, torch.float32) == "torch"
    covered = "our kernels in CUDA, emulated, where they cover its sizes and activations"
    assert op_server("pointwise_conv", CPU, torch.half) == covered
    assert op_server("stem_conv", CPU, torch.half).startswith("its reference: a CPU runs them in Triton's interpreter")
