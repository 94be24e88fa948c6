"""Which backend serves a forward: the one place that chooses, and says why."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from dataclasses import dataclass
from typing import NamedTuple

import torch

from mbv3fast.clearance import tried, untried
from mbv3fast.cuda.compiled import shared_limit
from mbv3fast.cuda.launch import DTYPES
from mbv3fast.cuda.library import emulated, lacks_library, lacks_loading

logger = logging.getLogger("mbv3fast")
BACKENDS = ("auto", "cuda", "triton", "torch")
PLANS = ("layers", "blocks", "network")  # auto never chooses the last
OF_CUDA = ("cuda", "network")  # the backends whose kernels are CUDA's
_BACKEND_OF_PLAN = {"layers": "triton", "blocks": "cuda", "network": "cuda"}
_CLUSTERS = (9, 0)  # the first compute capability that has them
_CUDA_OPS = (
    "depthwise_conv",
    "depthwise_excite_project",
    "depthwise_project",
    "inverted_residual",
    "pointwise_conv",
    "squeeze_excite",
)
ENVIRONMENT = "MBV3FAST_BACKEND"
SERVED_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_OLDEST = (7, 5)  # compute capability
_OLDEST_BFLOAT16 = (8, 0)


class BackendError(RuntimeError):
    """An explicit choice of backend that can't be served; the message says why."""


@dataclass(frozen=True)
class Decision:
    """`fused`: whether an engine runs the folded network; if not, PyTorch runs the modules. `reason`: why.

    backend: "triton", "cuda" or "network", whose kernels then run, or "torch". by_name: whether it was asked for, by
    another name than "auto".
    """

    fused: bool
    reason: str
    backend: str = "torch"
    by_name: bool = False


class Request(NamedTuple):
    """The backend asked for, and what asked: "backend", the argument, or the environment's variable."""

    name: str
    origin: str


def requested(backend: str, plan: str | None = None) -> Request:
    """The backend asked for: by the argument, by a `plan` of its, or else by the environment's MBV3FAST_BACKEND.

    Raises ValueError for an unknown name, BackendError for one that can't be served on any device here.
    """
    if plan is not None:
        _check_plan(plan, backend)
    by_argument = backend != "auto"
    name = backend if by_argument else os.environ.get(ENVIRONMENT) or "auto"
    request = Request(name, "backend" if by_argument else ENVIRONMENT)
    if request.name not in BACKENDS:
        raise ValueError(f"{request.origin}: got {name!r}, needs one of {', '.join(BACKENDS)}")
    if plan == "network":
        request = Request(plan, "plan")
    elif plan is not None and not by_argument:
        request = Request(_BACKEND_OF_PLAN[plan], "plan")
    lack = lacks_loading() if request.name in OF_CUDA else lacks_triton() if request.name == "triton" else ""
    if lack:
        raise BackendError(f"{request.origin}: {request.name!r} can't serve anything: {lack}")
    return request


def decide(request: Request, device: torch.device, dtype: torch.dtype) -> Decision:
    """Who runs a network on tensors of this device and dtype. Raises BackendError where who was asked for can't."""
    if request.name in OF_CUDA:
        lack = lacks_cuda(device, dtype) if request.name == "cuda" else lacks_network(device, dtype)
        if lack:
            raise BackendError(f"{request.origin}: {request.name!r} can't serve {dtype} on {device}: {lack}")
        return _by_cuda(device, dtype, by_name=True) if request.name == "cuda" else _by_network(device)
    if request.name == "auto" and device.type == "cuda" and not lacks_trusted_cuda(device, dtype):
        return _by_cuda(device, dtype, by_name=False)
    lack = lacks_kernels(device, dtype)
    if request.name == "auto" and device.type == "cuda" and not lack and tried("layers", device):
        lack = untried("layers", device)
    if request.name == "triton" and lack:
        raise BackendError(f"{request.origin}: 'triton' can't serve {dtype} on {device}: {lack}")
    if request.name == "triton" or (request.name == "auto" and device.type == "cuda" and not lack):
        how = "in Triton's interpreter" if device.type == "cpu" else f"on {device}"
        return Decision(True, f"Triton: fused kernels {how}", "triton", request.name == "triton")
    if device.type != "cpu":
        why = "backend 'torch'" if request.name == "torch" else lack
        return Decision(False, f"{why}: PyTorch runs the modules")
    if dtype not in SERVED_DTYPES:
        return Decision(False, f"{dtype} is not served: PyTorch runs the modules")
    return Decision(True, "CPU: batch norm folded, channels_last, run in float32 by PyTorch's convolutions")


def _by_cuda(device: torch.device, dtype: torch.dtype, *, by_name: bool) -> Decision:
    others = "PyTorch" if lacks_kernels(device, dtype) else "Triton"
    how = "emulated on the CPU" if device.type == "cpu" else f"on {device}"
    return Decision(True, f"CUDA: fused blocks {how}, all else by {others}", "cuda", by_name)


def _by_network(device: torch.device) -> Decision:
    how = "emulated on the CPU" if device.type == "cpu" else f"on {device}"
    return Decision(True, f"CUDA: the whole network in one launch {how}", "network", by_name=True)


def _check_plan(plan: str, backend: str) -> None:
    if plan not in PLANS:
        raise ValueError(f"plan: got {plan!r}, needs one of {', '.join(PLANS)}, or None")
    if backend not in ("auto", _BACKEND_OF_PLAN[plan]):
        raise BackendError(f"plan: {plan!r} is of {_BACKEND_OF_PLAN[plan]}'s kernels, but the backend is {backend!r}")


def plan_backend(request: Request, device: torch.device, dtype: torch.dtype) -> str:
    """Whose plan a model has, "triton", "cuda", "network" or "torch"; what was asked for needn't be served here."""
    return decide(request, device, dtype).backend if request.name == "auto" else request.name


def lacks_cuda(device: torch.device, dtype: torch.dtype) -> str:
    """Why no CUDA kernel takes tensors of this device and dtype; empty where they do."""
    return lacks_dtype(dtype) or lacks_library(device)


def lacks_network(device: torch.device, dtype: torch.dtype) -> str:
    """Why no cluster of blocks runs a network on tensors of this device and dtype; empty where one does."""
    lack = lacks_cuda(device, dtype)
    if lack or device.type != "cuda":
        return lack
    return lacks_clusters(torch.cuda.get_device_capability(device))


def lacks_clusters(capability: tuple[int, int]) -> str:
    """Why no chip of a compute capability runs a network in one launch; empty where some do."""
    chip = f"compute capability {capability[0]}.{capability[1]}"
    if capability < _CLUSTERS:
        return f"{chip} has no clusters of blocks"
    held, needed = (shared_limit(10 * major + minor) // 1024 for major, minor in (capability, _CLUSTERS))
    return "" if held >= needed else f"{chip} has {held} KB of shared memory for a block, needs {needed}"


def lacks_dtype(dtype: torch.dtype) -> str:
    """Why no CUDA kernel takes tensors of this dtype, wherever they are; empty where they do."""
    if dtype in DTYPES:
        return ""
    return f"CUDA kernels are of {' and '.join(str(kind).removeprefix('torch.') for kind in DTYPES)}"


def lacks_trusted_cuda(device: torch.device, dtype: torch.dtype) -> str:
    """Why `auto` doesn't choose CUDA kernels, which could hang a GPU where they are wrong; empty where it does."""
    return lacks_cuda(device, dtype) or untried("blocks", device)


def on_hardware(backend: str) -> bool:
    """Whether kernels of a backend run on a GPU, not in an interpreter or emulated."""
    return {"triton": not interpreted(), "cuda": not emulated(), "network": not emulated()}.get(backend, False)


def lacks_kernels(device: torch.device, dtype: torch.dtype) -> str:
    """Why no kernel of ours takes tensors of this device and dtype; empty where they do."""
    if dtype not in SERVED_DTYPES:
        return f"{dtype} is not served"
    if lacks_triton():
        return lacks_triton()
    if device.type == "cpu":
        return "" if interpreted() else "a CPU runs them in Triton's interpreter alone (TRITON_INTERPRET=1)"
    if device.type != "cuda":
        return f"no kernels for {device.type}"
    if torch.version.hip:
        return "no kernels for AMD"
    if interpreted():
        return "Triton's interpreter (TRITON_INTERPRET=1) runs on a CPU"
    capability = torch.cuda.get_device_capability(device)
    if capability < (_OLDEST_BFLOAT16 if dtype is torch.bfloat16 else _OLDEST):
        return f"compute capability {capability[0]}.{capability[1]} is too old for {dtype}"
    return ""


def op_backend(device: torch.device, dtype: torch.dtype) -> str:
    """Whose kernels a single op on such tensors runs: Triton's where they serve, or what MBV3FAST_BACKEND names, CUDA's
    ("cuda") or PyTorch's ("torch"). Where what is named doesn't serve such tensors, others do, and that is logged once.
    """
    server, lack = _op_choice(device, dtype)
    if lack:
        _say_once(f"{ENVIRONMENT}: {os.environ[ENVIRONMENT]!r} doesn't serve single ops of {dtype} on {device}: {lack}")
    return server


def _op_choice(device: torch.device, dtype: torch.dtype) -> tuple[str, str]:
    """The server, and why it isn't the one that is named."""
    wanted = os.environ.get(ENVIRONMENT)
    lack = {"cuda": lacks_cuda, "triton": lacks_kernels}.get(wanted or "", lambda *_: "")(device, dtype)
    if wanted == "cuda" and not lack:
        return "cuda", ""
    return "torch" if wanted == "torch" or lacks_kernels(device, dtype) else "triton", lack


@functools.cache
def _say_once(message: str) -> None:
    logger.warning("%s", message)


@functools.cache
def lacks_triton() -> str:
    """What is missing of the kernels and their compiler; empty where both are there."""
    if not _found("triton"):
        return "Triton is not installed (pip install 'mbv3fast[triton]')"
    if not _found("mbv3fast.kernels"):
        return "the kernels are missing from this installation"
    return ""


@functools.cache
def interpreted() -> bool:
    """Whether Triton runs kernels in its interpreter, which is settled when the kernels are imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def network_server(device: torch.device, dtype: torch.dtype) -> str:
    """Who serves a network by default, and why (what `mbv3fast doctor` prints)."""
    try:
        decision = decide(requested("auto"), device, dtype)
    except (BackendError, ValueError) as error:
        return f"nobody: {error}"
    return decision.reason


def op_server(op: str, device: torch.device, dtype: torch.dtype) -> str:
    """Who computes a single op, and why."""
    server, _ = _op_choice(device, dtype)
    lack = lacks_kernels(device, dtype)
    by_name = os.environ.get(ENVIRONMENT) == "torch"
    reference = f"its reference: {f'{ENVIRONMENT} is torch' if by_name else lack}"
    how = {"cuda": ", emulated", "triton": ", in Triton's interpreter"}.get(server, "") if device.type == "cpu" else ""
    if server == "cuda" and op in _CUDA_OPS:
        return f"our kernels in CUDA{how}, where they cover its sizes and activations"
    return reference if lack or server == "torch" else f"our kernels{how if server == 'triton' else ''}"


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False
