"""A file tried in a fresh process, and compared with its model in float64."""

from __future__ import annotations

import copy
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from mbv3fast.agreement import Difference, difference
from mbv3fast.deploy import reload
from mbv3fast.deploy.job import ExportError, Job, Written, leaves
from mbv3fast.serving import Served

_SECONDS = 600
_MANY = 33  # images, since PyTorch chooses by 16 and by 32 what may then serve no more or no less
_MOST_PIXELS = 2**24  # of a batch that is tried


def compare(job: Job, file: Path, written: Written) -> tuple[Difference, tuple[tuple[int, ...], ...]]:
    """What comes nearest to being too much of an error, and the shapes of the inputs that were tried.

    Raises ExportError where the file doesn't run, or errs by too much.
    """
    counts = sorted({1, *(n for n in (3, _MANY, job.batch) if n * job.size[0] * job.size[1] < _MOST_PIXELS)})
    inputs = [job.images(count) for count in counts]
    if written.any_size:
        inputs.append(job.images(2, (job.size[0] + 33, job.size[1] + 14)))
    exact = copy.deepcopy(job.model).double()
    worst = Difference(0.0, 1.0)
    for x, outputs in zip(inputs, run_afresh(file, inputs, written.imports), strict=True):
        for found in _differences(job, exact, x, outputs, written.factor, file.suffix):
            if not found.agrees:
                raise ExportError(f"{file.suffix}: for an input of {list(x.shape)} the file's outputs err by {found}")
            worst = max(worst, found, key=lambda one: one.error / one.allowed if one.allowed else 0.0)
    return worst, tuple(tuple(x.shape) for x in inputs)


def run_afresh(file: Path, inputs: list[Tensor], imports: tuple[str, ...] = ()) -> list[list[Tensor]]:
    """A file's outputs for each of `inputs`, by a process that imports torch, ONNX Runtime and `imports` alone."""
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder, "inputs.pt"), Path(folder, "outputs.pt")
        torch.save(inputs, given)
        command = [sys.executable, reload.__file__, str(file), str(given), str(made), *imports]
        try:
            ran = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
        except subprocess.TimeoutExpired as error:
            raise ExportError(f"{file.suffix}: a fresh process has not run the file in {_SECONDS} s") from error
        if ran.returncode != 0:
            said = ran.stderr.strip().splitlines() or [f"exit code {ran.returncode}"]
            raise ExportError(f"{file.suffix}: a fresh process can't run the file: {said[-1]}")
        loaded: list[list[Tensor]] = torch.load(made, weights_only=True)
        return loaded


@torch.no_grad()
def _differences(
    job: Job, exact: Served, x: Tensor, outputs: list[Tensor], factor: float, suffix: str
) -> list[Difference]:
    truths = leaves(exact.reference_forward(x if job.uint8 else x.double()))
    if len(outputs) != len(truths):
        raise ExportError(f"{suffix}: the file put out {len(outputs)} tensors, needs {len(truths)}")
    found = []
    for got, plain, truth in zip(outputs, leaves(job.model.reference_forward(x)), truths, strict=True):
        if got.shape != truth.shape or got.dtype != plain.dtype:
            got_and_needed = (f"{tensor.dtype} {list(tensor.shape)}" for tensor in (got, plain))
            raise ExportError(f"{suffix}: the file put out {', needs '.join(got_and_needed)}")
        found.append(difference(got.to(truth.device), plain, truth, factor))
    return found
