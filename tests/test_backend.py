"""The choice of backend: by argument, by environment, and what can't be served."""

from __future__ import annotations

import pytest
import torch

import mbv3fast
from mbv3fast import BackendError, backend
from mbv3fast.backend import (
    ENVIRONMENT,
    SERVED_DTYPES,
    Request,
    decide,
    lacks_kernels,
    lacks_triton,
    network_server,
    op_server,
    requested,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
AUTO, TORCH, TRITON = (Request(name, "backend") for name in ("auto", "torch", "triton"))


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says that it has one, of compute capability 7.5."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))


@pytest.mark.parametrize(
    ("argument", "environment", "chosen"),
    [
        ("auto", None, "auto"),
        ("torch", None, "torch"),
        ("auto", "torch", "torch"),
        ("auto", "auto", "auto"),
        ("torch", "cuda", "torch"),  # an argument outweighs the environment
        ("torch", "nonsense", "torch"),
        ("triton", "torch", "triton"),
    ],
)
def test_the_argument_then_the_environment(
    monkeypatch: pytest.MonkeyPatch, argument: str, environment: str | None, chosen: str
) -> None:
    if environment is not None:
        monkeypatch.setenv(ENVIRONMENT, environment)
    assert requested(argument).name == chosen


@pytest.mark.parametrize("by", ["argument", "environment"])
@pytest.mark.parametrize(
    ("name", "message"),
    [("cuda", "'cuda' can't serve anything: gone"), ("triton", "'triton' can't serve anything: gone")],
)
def test_a_backend_that_no_device_here_has_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, message: str, by: str
) -> None:
    monkeypatch.setattr(backend, f"lacks_{'loading' if name == 'cuda' else name}", lambda: "gone")
    origin = "backend" if by == "argument" else ENVIRONMENT
    if by == "environment":
        monkeypatch.setenv(ENVIRONMENT, name)
    with pytest.raises(BackendError, match=f"^{origin}: {message}"):
        mbv3fast.small(backend=name if by == "argument" else "auto")


@pytest.mark.parametrize("name", ["", "CUDA", "cudnn"])
def test_an_unknown_backend_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(ValueError, match=f"^backend: got '{name}', needs one of auto, cuda, triton, torch"):
        mbv3fast.small(backend=name)
    monkeypatch.setenv(ENVIRONMENT, name or "none")
    with pytest.raises(ValueError, match=f"^{ENVIRONMENT}: got '{name or 'none'}', needs one of"):
        mbv3fast.small()


@pytest.mark.parametrize("features_only", [False, True])
def test_the_environment_counts_at_each_call(monkeypatch: pytest.MonkeyPatch, features_only: bool) -> None:
    model = mbv3fast.small(features_only=features_only).eval()
    pinned = mbv3fast.small(features_only=features_only, backend="torch").eval()
    x = torch.zeros(1, 3, 32, 32)
    monkeypatch.setenv(ENVIRONMENT, "cuda")
    monkeypatch.setattr(backend, "lacks_loading", lambda: "gone")
    with torch.inference_mode():
        for call in (model, model.explain):
            with pytest.raises(BackendError, match=ENVIRONMENT):
                call(x)
        pinned(x)
    monkeypatch.setenv(ENVIRONMENT, "torch")
    with torch.inference_mode():
        model(x)
        assert model.explain(x).fused


@torch.inference_mode()
def test_the_choice_survives_as_an_attribute() -> None:
    model = mbv3fast.small(backend="torch")
    assert (model.backend, mbv3fast.small().backend) == ("torch", "auto")
    model.backend = "triton"
    with pytest.raises(BackendError, match=r"^backend: 'triton' can't serve"):
        model.eval()(torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("dtype", SERVED_DTYPES)
@pytest.mark.parametrize("request_", [AUTO, TORCH])
def test_the_cpu_serves_its_dtypes(dtype: torch.dtype, request_: Request) -> None:
    decision = decide(request_, CPU, dtype)
    assert (decision.fused, decision.backend) == (True, "torch")


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        (CPU, torch.float64, "torch.float64 is not served: PyTorch runs the modules"),
        (CPU, torch.complex64, "torch.complex64 is not served: PyTorch runs the modules"),
        (CUDA, torch.float64, "torch.float64 is not served: PyTorch runs the modules"),
        (CUDA, torch.bfloat16, "compute capability 7.5 is too old for torch.bfloat16: PyTorch runs the modules"),
        (torch.device("meta"), torch.float32, "no kernels for meta: PyTorch runs the modules"),
    ],
)
@pytest.mark.usefixtures("gpu")
def test_what_is_left_to_pytorch(device: torch.device, dtype: torch.dtype, reason: str) -> None:
    decision = decide(AUTO, device, dtype)
    assert (decision.fused, decision.reason) == (False, reason)


@pytest.mark.usefixtures("gpu")
def test_a_gpu_is_served_by_triton_unless_torch_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "tried", lambda *_: None)  # no GPU to ask for its name
    decision = decide(AUTO, CUDA, torch.float16)
    assert (decision.fused, decision.backend) == (True, "triton")
    decision = decide(TORCH, CUDA, torch.float16)
    assert (decision.fused, decision.reason) == (False, "backend 'torch': PyTorch runs the modules")
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert decide(AUTO, CUDA, torch.float16).reason.startswith("no kernels for AMD")


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        (CPU, torch.float32, r"a CPU runs them in Triton's interpreter alone \(TRITON_INTERPRET=1\)"),
        (CPU, torch.float64, "torch.float64 is not served"),
        (torch.device("meta"), torch.float32, "no kernels for meta"),
    ],
)
def test_triton_where_it_cannot_serve_is_an_error(device: torch.device, dtype: torch.dtype, reason: str) -> None:
    with pytest.raises(BackendError, match=f"^backend: 'triton' can't serve {dtype} on {device}: {reason}"):
        decide(TRITON, device, dtype)


def test_a_model_asks_for_triton_at_its_first_forward() -> None:
    model = mbv3fast.small(backend="triton").eval()
    with torch.inference_mode(), pytest.raises(BackendError, match=r"can't serve torch.float32 on cpu"):
        model(torch.zeros(1, 3, 32, 32))
    model(torch.zeros(1, 3, 32, 32))  # with gradients it is PyTorch's, whatever the backend


def test_without_triton_nothing_is_lost_but_its_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "lacks_triton", lambda: "gone")
    assert lacks_kernels(CUDA, torch.float16) == "gone"
    assert decide(AUTO, CPU, torch.float32).fused


@pytest.mark.parametrize(
    ("missing", "advice"),
    [("triton", "pip install 'mbv3fast[triton]'"), ("mbv3fast.kernels", "kernels are missing")],
)
def test_what_is_missing_is_told_apart(monkeypatch: pytest.MonkeyPatch, missing: str, advice: str) -> None:
    monkeypatch.setattr(backend, "_found", lambda name: name != missing)
    assert advice in lacks_triton.__wrapped__()


def test_who_serves_a_network_and_an_op(monkeypatch: pytest.MonkeyPatch) -> None:
    assert network_server(CPU, torch.float32).startswith("CPU: batch norm folded")
    assert op_server("pointwise_conv", CPU, torch.float32).startswith(
        "its reference: a CPU runs them in Triton's interpreter alone"
    )
    monkeypatch.setattr(backend, "interpreted", lambda: True)
    assert op_server("pointwise_conv", CPU, torch.float32) == "our kernels, in Triton's interpreter"
    monkeypatch.setenv(ENVIRONMENT, "torch")
    assert op_server("pointwise_conv", CPU, torch.float32) == "its reference: MBV3FAST_BACKEND is torch"
    monkeypatch.setenv(ENVIRONMENT, "cuda")
    monkeypatch.setattr(backend, "lacks_loading", lambda: "gone")
    assert network_server(CPU, torch.float32) == "nobody: MBV3FAST_BACKEND: 'cuda' can't serve anything: gone"
