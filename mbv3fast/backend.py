"""Which backend serves a forward: the one place that chooses, and says why."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

BACKENDS = ("auto", "cuda", "triton", "torch")
ENVIRONMENT = "MBV3FAST_BACKEND"
SERVED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
OPS = ("stem_conv", "pointwise_conv", "depthwise_conv", "squeeze_excite", "global_mean", "linear")


class BackendError(RuntimeError):
    """An explicit choice of backend that can't be served; the message says why."""


@dataclass(frozen=True)
class Decision:
    """`fused`: whether an engine runs the folded network; if not, PyTorch runs the modules. `reason`: why."""

    fused: bool
    reason: str


def requested(backend: str) -> str:
    """The backend asked for: the argument, or where that is "auto", the environment's MBV3FAST_BACKEND.

    Raises ValueError for an unknown name, BackendError for one that this version doesn't have.
    """
    name = (os.environ.get(ENVIRONMENT) or "auto") if backend == "auto" else backend
    origin = "backend" if backend != "auto" else ENVIRONMENT
    if name not in BACKENDS:
        raise ValueError(f"{origin}: got {name!r}, needs one of {', '.join(BACKENDS)}")
    if name in ("cuda", "triton"):
        raise BackendError(f"{origin}: {name!r} has no kernels in this version; use 'auto' or 'torch'")
    return name


def decide(device: torch.device, dtype: torch.dtype) -> Decision:
    """Whether the folded network runs on tensors of this device and dtype."""
    if device.type != "cpu":
        return Decision(False, f"no kernels for {device.type} in this version: PyTorch runs the modules")
    if dtype not in SERVED_DTYPES:
        return Decision(False, f"{dtype} is not served: PyTorch runs the modules")
    return Decision(True, "CPU: batch norm folded, channels_last, run in float32 by PyTorch's convolutions")


def serving_table(device: torch.device, dtype: torch.dtype) -> dict[str, str]:
    """For each op, who serves it and why (what `mbv3fast doctor` prints)."""
    decision = decide(device, dtype)
    how = "torch, folded" if decision.fused else "torch, by module"
    return dict.fromkeys(OPS, f"{how}: {decision.reason}")
