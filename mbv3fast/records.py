"""What was found out on a GPU, kept in files of the user's cache directory under all that it depends on."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mbv3fast.atomic import replacing
from mbv3fast.torch_state import cuda_driver_version

logger = logging.getLogger("mbv3fast")
CACHE = "MBV3FAST_CACHE"


def gpu_identity(device: torch.device) -> str:
    """The GPU, its driver, and the versions of what compiles for it."""
    versions = f"torch {torch.__version__} triton {_triton_version()}"
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
    tables = "kernels/tables/*.json", "cuda/tables/*.json"
    for pattern in ("kernels/*.py", *tables, "ops/*.py", "cuda/*.py", "lib/libmbv3fast_cuda.so"):
        for path in sorted(folder.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def record_path(file: str) -> Path:
    """A file of records: in MBV3FAST_CACHE, or the user's cache directory."""
    base = os.environ.get(CACHE) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "mbv3fast")
    return Path(base).expanduser() / file


def read_record(file: str, key: str) -> dict[str, Any] | None:
    """What is kept under a key; None where nothing is, or it is damaged. Every record has a `reason`."""
    entry = _entries(file).get(key)
    return entry if isinstance(entry, dict) and isinstance(entry.get("reason"), str) else None


def keep_record(file: str, key: str, entry: dict[str, Any]) -> str:
    """Keep `entry` under a key. Why it can't be kept, empty where it is."""
    try:
        record_path(file).parent.mkdir(parents=True, exist_ok=True)
        with _turn(file), replacing(record_path(file)) as path:
            path.write_text(json.dumps({**_entries(file), key: entry}, indent=1), encoding="utf-8")
    except (OSError, RuntimeError) as error:
        logger.info("%s: not kept: %s", file, error)
        return str(error)
    return ""


@contextmanager
def _turn(file: str) -> Iterator[None]:
    """One writer at a time, where the system has locks: each adds to what the others wrote."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with record_path(f"{file}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _entries(file: str) -> dict[str, Any]:
    """What a file holds; nothing where it is not there or damaged."""
    try:
        entries = json.loads(record_path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # no home, lists without end
        return {}
    return entries if isinstance(entries, dict) else {}


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "none"
