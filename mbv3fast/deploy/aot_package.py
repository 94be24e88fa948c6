"""AOTInductor's packages: a fused model as a library of machine code, with its weights."""

from __future__ import annotations

import os
import platform
import warnings
from pathlib import Path
from typing import Any

import torch

from mbv3fast.agreement import OTHERS_FACTOR
from mbv3fast.backend import ENVIRONMENT, BackendError, interpreted, lacks_kernels, op_backend, requested
from mbv3fast.deploy.job import ExportError, Job, Written
from mbv3fast.description import METADATA_KEY
from mbv3fast.ops.target import configured_for
from mbv3fast.torch_state import for_any_batch


def write_package(job: Job, path: Path) -> Written:
    """Write a .pt2 of `job`. Raises as `export`."""
    from torch._inductor import config as inductor_config  # seconds, and only an export needs it

    backend = _server(job)
    program = job.model.fused(backend)
    height, width = job.size
    most = (2**31 - 1) // (height * width)  # our kernels count pixels in 32 bits, Inductor's are fastest so
    if job.batch > most:
        raise ValueError(f"batch: got {job.batch}, needs at most {most} images of {height}x{width}")
    on_cpu = job.like.device.type == "cpu"
    settings: dict[str, Any] = {"cpp.dynamic_threads": True}
    settings["aot_inductor.metadata"] = {METADATA_KEY: job.model.description().to_json()}
    if hasattr(inductor_config.aot_inductor, "check_lowerbound"):  # not in torch 2.9
        settings["aot_inductor.check_lowerbound"] = False  # of 2, by tracing's habit
    elif on_cpu:
        raise ExportError(f"{path.suffix}: PyTorch {torch.__version__} bounds the batch on a CPU, needs 2.10 or later")
    # From 2 on, PyTorch takes a CPU's fast convolutions for small images too, and asks no more; they serve 1 as well.
    batch = torch.export.Dim("batch", min=2 if on_cpu else 1, max=most)
    try:
        with torch.no_grad(), configured_for(job.batch), for_any_batch(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PyTorch's own deprecations
            exported = torch.export.export(program, (job.images(2),), dynamic_shapes=({0: batch},))  # 1 would be fixed
            torch._inductor.aoti_compile_and_package(exported, package_path=str(path), inductor_configs=settings)
    except Exception as error:  # whatever a tracer or a compiler may say
        raise ExportError(f"{path.suffix}: PyTorch can't compile it: {error}") from error
    return _described(job, backend, most)


def _server(job: Job) -> str:
    """Whose code the package holds, "triton" or "torch"."""
    request = requested(job.backend)
    device, dtype = job.like.device, job.like.dtype
    if request.name == "cuda":
        raise BackendError(f"{request.origin}: a package can't hold CUDA's kernels; use 'triton' or 'torch'")
    served = op_backend(device, dtype) == "triton"
    if request.name == "triton" and not served:
        reason = lacks_kernels(device, dtype) or f"{ENVIRONMENT} is {os.environ.get(ENVIRONMENT)}"
        raise BackendError(f"{request.origin}: 'triton' can't serve {dtype} on {device}: {reason}")
    if request.name == "auto":
        return "triton" if device.type == "cuda" and served else "torch"
    return request.name


def _described(job: Job, backend: str, most: int) -> Written:
    device = job.like.device
    if backend == "triton" and interpreted():
        contents = "torch.ops.mbv3fast.*, which a reader has by `import mbv3fast.ops`"
        return Written(contents, most, imports=("mbv3fast.ops",))
    machine = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this CPU ({platform.machine()})"
    if backend == "triton":
        costs = job.model.plan("triton").costs((job.batch, job.model.config.in_chans, *job.size))
        return Written(f"{sum(cost.launches for cost in costs)} launches of our kernels, compiled for {machine}", most)
    return Written(f"PyTorch's operators on folded weights, compiled for {machine}", most, factor=OTHERS_FACTOR)
