"""A stage of a run on a GPU, and the commands that several are made of."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.machine import DEVICE

ROOT = Path(__file__).parents[2]
PYTHON = (sys.executable, "-m")
AT_ONCE = min(8, os.cpu_count() or 1)  # processes that mostly compile
Command = tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """Commands, `at_once` of them side by side; all have `limit` seconds together. `lacks`: why it is skipped.

    late: more commands, known only when it starts. after: the stage that must have passed, or this one is skipped.
    """

    name: str
    commands: tuple[Command, ...]
    limit: float
    at_once: int = 1
    lacks: str = ""
    late: Callable[[], Iterator[Command]] | None = None
    after: str = ""


def rows_folder(out: Path) -> Path:
    """Where suites leave their files, one a stage."""
    return out / "rows"


def module(name: str, *arguments: str) -> Command:
    return (*PYTHON, name, *arguments)


def bench(name: str, out: Path, suite: str, chosen: str, limit: float, dry: bool) -> tuple[Command, ...]:
    """The rows of a suite whose ids fit what is `chosen`, an expression for -k."""
    file = str(rows_folder(out) / f"{name}.json")
    options = ["-q", "-k", chosen, "--limit", str(limit / 2), *["--tiny"] * dry]
    options += ["--benchmark-json", file, "--benchmark-columns", "median,iqr,min,max,rounds"]
    return (module("pytest", f"benchmarks/bench_{suite}.py", *options),)


def either(case: str) -> str:
    """Of both variants, whose ends keep "float16" from being found in "bfloat16"."""
    return f"large-{case} or small-{case}"


def among(case: str, contenders: str) -> str:
    return f"({either(case)}) and ({contenders})"


def tool(name: str, dry: bool) -> tuple[str, str]:
    """A tool's path, and why it can't be used."""
    path = shutil.which(name)
    return (path or name), ("" if dry or path else f"{name} is not installed")


def watched(kind: str, dry: bool, *arguments: str) -> Command:
    """A plan's launches for a few small images, watched by a tool of compute-sanitizer."""
    check = module("benchmarks.gpu.check_plan", "small", "--eager", "--whole", *arguments)
    if dry:
        return (*check, "--batch", "1", "--size", "32")
    program, _ = tool("compute-sanitizer", dry)
    uncached = ("env", "PYTORCH_NO_CUDA_MEMORY_CACHING=1")  # so that each tensor is an allocation of its own
    watching = (*uncached, program, "--tool", kind, "--error-exitcode", "9", "--print-limit", "20")
    return (*watching, *check, "--batch", "3", "--size", "64")


def capability() -> tuple[int, int]:
    """Of the GPU; where there is none, the H100's."""
    return torch.cuda.get_device_capability() if DEVICE == "cuda" else (9, 0)
