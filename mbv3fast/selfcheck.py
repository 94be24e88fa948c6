"""Whether our kernels are right and worth it on a GPU that nobody has tried them on.

Before `auto` serves an input of a new shape, every step of the plan and then the whole is computed from random inputs
and compared with the references in float64, and timed beside PyTorch's modules. The verdict is kept in the user's cache
directory under everything that it depends on.
"""

from __future__ import annotations

import hashlib
import logging
import statistics
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from mbv3fast._version import __version__
from mbv3fast.disagreement import disagreement
from mbv3fast.plan import Plan
from mbv3fast.records import gpu_identity, keep_record, read_record, sources
from mbv3fast.timing import device_seconds
from mbv3fast.torch_state import fork_safe_lock, tf32_allowed

logger = logging.getLogger("mbv3fast")
FILE = "verdicts.json"
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
        kept = read_record(FILE, key)
        if kept is not None:
            return Verdict(kept["reason"], kept.get("speedup"))
        verdict = _judge(plan, shape, device, ours, theirs, timer or gpu_seconds)
        keep_record(FILE, key, verdict._asdict())
    return verdict


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
