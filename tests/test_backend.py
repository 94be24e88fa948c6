"""The choice of backend: by argument, by environment, and what can't be served."""

from __future__ import annotations

import pytest
import torch

import mbv3fast
from mbv3fast import BackendError
from mbv3fast.backend import ENVIRONMENT, OPS, SERVED_DTYPES, decide, requested, serving_table
from mbv3fast.engine import TORCH_OPS

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@pytest.mark.parametrize(
    ("argument", "environment", "chosen"),
    [
        ("auto", None, "auto"),
        ("torch", None, "torch"),
        ("auto", "torch", "torch"),
        ("auto", "auto", "auto"),
        ("torch", "cuda", "torch"),  # an argument outweighs the environment
        ("torch", "nonsense", "torch"),
    ],
)
def test_the_argument_then_the_environment(
    monkeypatch: pytest.MonkeyPatch, argument: str, environment: str | None, chosen: str
) -> None:
    if environment is not None:
        monkeypatch.setenv(ENVIRONMENT, environment)
    assert requested(argument) == chosen


@pytest.mark.parametrize("name", ["cuda", "triton"])
@pytest.mark.parametrize("by", ["argument", "environment"])
def test_a_backend_without_kernels_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, by: str) -> None:
    origin = "backend" if by == "argument" else ENVIRONMENT
    if by == "environment":
        monkeypatch.setenv(ENVIRONMENT, name)
    with pytest.raises(BackendError, match=f"^{origin}: '{name}' has no kernels in this version; use 'auto'"):
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
    monkeypatch.setenv(ENVIRONMENT, "triton")
    with torch.inference_mode():
        for call in (model, model.explain):
            with pytest.raises(BackendError, match=ENVIRONMENT):
                call(x)
        pinned(x)
    monkeypatch.setenv(ENVIRONMENT, "torch")
    with torch.inference_mode():
        model(x)
        assert model.explain(x).fused


def test_the_choice_survives_as_an_attribute() -> None:
    model = mbv3fast.small(backend="torch")
    assert (model.backend, mbv3fast.small().backend) == ("torch", "auto")
    model.backend = "cuda"
    with pytest.raises(BackendError, match=r"^backend: 'cuda' has no kernels"):
        model(torch.zeros(2, 3, 32, 32))


@pytest.mark.parametrize("dtype", SERVED_DTYPES)
def test_the_cpu_serves_its_dtypes(dtype: torch.dtype) -> None:
    assert decide(CPU, dtype).fused


@pytest.mark.parametrize(
    ("device", "dtype", "reason"),
    [
        (CPU, torch.float64, "torch.float64 is not served: PyTorch runs the modules"),
        (CPU, torch.complex64, "torch.complex64 is not served: PyTorch runs the modules"),
        (CUDA, torch.float16, "no kernels for cuda in this version: PyTorch runs the modules"),
        (torch.device("meta"), torch.float32, "no kernels for meta in this version: PyTorch runs the modules"),
    ],
)
def test_what_is_left_to_pytorch(device: torch.device, dtype: torch.dtype, reason: str) -> None:
    decision = decide(device, dtype)
    assert (decision.fused, decision.reason) == (False, reason)


def test_the_table_names_every_op_that_plans_are_made_of() -> None:
    table = serving_table(CPU, torch.float32)
    assert set(table) == set(OPS) == set(TORCH_OPS)
    assert all(server.startswith("torch, folded: CPU") for server in table.values())
    assert all(server.startswith("torch, by module: no") for server in serving_table(CUDA, torch.float16).values())
