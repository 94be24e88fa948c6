"""Whether our kernels are right and worth it on a GPU that nobody has tried them on.

Before `auto` serves an input of a new shape, every step of the plan and then the whole is computed from random inputs
and compared with the references in float64, and timed beside PyTorch's modules. The verdict is kept in the user's cache
directory under everything that it depends on.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from mbv3fast._version import __version__
from mbv3fast.atomic import replacing
from mbv3fast.disagreement import disagreement
from mbv3fast.plan import Plan
from mbv3fast.timing import device_seconds
from mbv3fast.torch_state import cuda_driver_version, fork_safe_lock, tf32_allowed

logger = logging.getLogger("mbv3fast")
CACHE = "MBV3FAST_CACHE"
_RUNS = 10
_LOCK = fork_safe_lock()


class Verdict(NamedTuple):
    """`reason`: why the kernels must not serve, empty where they may; `speedup` over PyTorch's modules, if timed."""

    reason: str
    speedup: float | None = None


def judge(
    plan: Plan,
    shape: tuple[int, ...],
    device: torch.device,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    timer: Callable[[Callable[[], Any]], float] | None = None,
) -> Verdict:
    """The verdict on `plan` for an input of `shape`, from the records or by trying; `ours` and `theirs` are timed.

    timer: seconds of a call, by the GPU's own events where it is None.
    """
    key = fingerprint(plan, shape, device)
    with _LOCK:
        kept = _read(key)
        if kept is None:
            kept = _judge(plan, shape, device, ours, theirs, timer or gpu_seconds)
            _write(key, kept)
    return kept


def _judge(
    plan: Plan, shape: tuple[int, ...], device: torch.device, ours: Any, theirs: Any, timer: Callable[[Any], float]
) -> Verdict:
    reason = disagreement(plan, shape, device)
    if reason:
        logger.warning("self-check: %s; PyTorch serves inputs of %s on this GPU", reason, shape)
        return Verdict(reason)
    speedup = timer(theirs) / timer(ours)
    if speedup < 1:
        reason = f"our kernels take {1 / speedup:.2f}x the time of PyTorch's modules for {shape}"
        logger.info("self-check: %s", reason)
    return Verdict(reason, speedup)


def gpu_seconds(run: Callable[[], Any]) -> float:
    """The median time of a call on the current GPU."""
    return statistics.median(device_seconds(run, _RUNS))


def fingerprint(plan: Plan, shape: tuple[int, ...], device: torch.device) -> str:
    """A hash of all that a verdict depends on: GPU, driver, versions, our sources, the plan, the shape."""
    steps = [
        (step.op, sorted(step.inputs), sorted(step.options.items()), [tuple(t.shape) for t in step.tensors.values()])
        for step in plan.steps
    ]
    parts = (gpu_identity(device), __version__, sources(), str(plan.dtype), tf32_allowed(), shape, steps)
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def gpu_identity(device: torch.device) -> str:
    """The GPU, its driver, and the versions of what compiles for it."""
    versions = f"torch {torch.__version__} triton {importlib.metadata.version('triton')}"
    if device.type != "cuda":
        return f"{device.type} {versions}"
    properties = torch.cuda.get_device_properties(device)
    chip = f"{properties.name} {properties.major}.{properties.minor} driver {cuda_driver_version()}"
    return f"{chip} {versions}"


@functools.cache
def sources() -> str:
    """A hash of our kernels, of their tuned tables, and of what calls them."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for pattern in ("kernels/*.py", "kernels/tables/*.json", "ops/*.py", "cuda/*.py", "lib/libmbv3fast_cuda.so"):
        for path in sorted(folder.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def records() -> Path:
    """The file of verdicts: in MBV3FAST_CACHE, or the user's cache directory."""
    base = os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mbv3fast")
    return Path(base, "verdicts.json")


def _read(key: str) -> Verdict | None:
    entry = _entries().get(key)
    if not isinstance(entry, dict) or not isinstance(entry.get("reason"), str):
        return None
    return Verdict(entry["reason"], entry.get("speedup"))


def _entries() -> dict[str, Any]:
    """What the file holds; nothing where it is not there or damaged."""
    try:
        entries = json.loads(records().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # no home, lists without end
        return {}
    return entries if isinstance(entries, dict) else {}


def _write(key: str, verdict: Verdict) -> None:
    try:
        records().parent.mkdir(parents=True, exist_ok=True)
        with replacing(records()) as path:
            path.write_text(json.dumps({**_entries(), key: verdict._asdict()}, indent=1), encoding="utf-8")
    except (OSError, RuntimeError) as error:
        logger.info("self-check: its verdict is not kept: %s", error)
