"""Trying a plan on a device in a process of its own, which may hang, be killed or leave the GPU in error."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

from mbv3fast.backend import SERVED_DTYPES, BackendError, decide, requested
from mbv3fast.disagreement import disagreement
from mbv3fast.factory import large, small
from mbv3fast.fast import FusedMobileNetV3

_CALLS_ERROR = 0.1  # what calls that mix things up exceed; precision is `disagreement`'s matter
_LAST = 10  # seconds for a killed process to go
_CODE = "import sys; sys.path[0] = sys.argv.pop(1); from mbv3fast.trial import main; main(*sys.argv[1:])"
COMMAND = [sys.executable, "-c", _CODE, str(Path(__file__).parents[1])]  # this very package, wherever it is called
_SHAPES = {  # few images, odd sizes, many
    "cuda": ((1, 3, 224, 224), (3, 3, 225, 161), (64, 3, 224, 224)),
    "cpu": ((2, 3, 32, 33),),  # interpreted or emulated
}


class Case(NamedTuple):
    variant: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.variant}, {str(self.dtype).removeprefix('torch.')}, {list(self.shape)}"


def cases(plan: str, device: torch.device) -> list[Case]:
    """What a plan is tried on: both networks, in each dtype that it serves. Raises BackendError where that is none."""
    dtypes, lacks = [], []
    for dtype in SERVED_DTYPES:
        try:
            decide(requested("auto", plan), device, dtype)
            dtypes.append(dtype)
        except BackendError as error:
            lacks.append(error)
    if not dtypes:
        raise lacks[-1]
    return [Case(*case) for case in itertools.product(("large", "small"), dtypes, _SHAPES[device.type])]


def try_plan(plan: str, device: torch.device) -> str:
    """The first case in which a plan errs, and how; empty where it is right in all."""
    for case in cases(plan, device):
        model = _calibrated(case.variant, plan, device).to(case.dtype)
        reason = disagreement(model.plan(), case.shape, device) or _calls(model, case)
        if reason:
            return f"{case}: {reason}"
    return ""


def _calls(model: FusedMobileNetV3, case: Case) -> str:
    """What is wrong with the model's own calls, which on a GPU are replays of graphs: one input, another, the first."""
    device = next(model.parameters()).device
    first, second = (torch.randn(case.shape, device=device, dtype=case.dtype) for _ in range(2))
    with torch.inference_mode():
        before, other, after = model(first), model(second), model(first)
        truth = model.reference_forward(first)
    if not torch.equal(before, after):
        return "the same input gives other outputs when it comes again"
    if torch.equal(before, other):
        return "another input gives the same outputs"
    error = (before - truth).abs().max() / truth.abs().max()
    return "" if error <= _CALLS_ERROR else f"calls differ from PyTorch's modules by {error:.2g} of the largest output"


def _calibrated(variant: str, plan: str, device: torch.device) -> FusedMobileNetV3:
    """A network whose outputs depend on its inputs: BN statistics are those of random images."""
    torch.manual_seed(0)
    model = (large if variant == "large" else small)(plan=plan, bn_momentum=1.0).to(device)
    with torch.no_grad():
        model(torch.randn(8, 3, 64, 64, device=device))
    return model.eval()


def try_in_process(plan: str, device: torch.device, seconds: float) -> str:
    """What is wrong with a plan, as `try_plan` says, or how its process ended; empty where nothing is."""
    pipe = subprocess.PIPE
    command = [*COMMAND, plan, str(device)]
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, errors="replace", start_new_session=True)
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"it took more than {seconds:g} seconds{_end(process)}"
    finally:
        _end(process)
    return _outcome(process.returncode, output, errors)


def _outcome(code: int, output: str, errors: str) -> str:
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        return f"its process was ended by {names.get(-code, f'signal {-code}')}"
    try:
        if code > 0:
            raise ValueError
        return str(json.loads(output.splitlines()[-1])["reason"])
    except (ValueError, LookupError, TypeError):
        last = errors.strip().splitlines()[-1:] or [f"exit code {code}"]
        return f"its process failed: {last[0]}"


def _end(process: subprocess.Popen[str]) -> str:
    """Kill a process with what it has started, and say so where it won't go, as one in a driver may not."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(_LAST)
    except subprocess.TimeoutExpired:
        return ", and could not be ended"
    finally:
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    return ""


def main(plan: str, name: str) -> None:
    """What the process does: print the reason, as JSON."""
    device = torch.device(name)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    print(json.dumps({"reason": try_plan(plan, device)}))
