"""Whether a plan was tried on a GPU: `auto` doesn't choose one whose kernels could hang or fault it before that."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from datetime import date
from pathlib import Path
from typing import Any

import torch

from mbv3fast import records
from mbv3fast._version import __version__
from mbv3fast.atomic import replacing
from mbv3fast.cuda.library import lacks_loading, library_sources
from mbv3fast.tuned import check_keys

logger = logging.getLogger("mbv3fast")
COMMITTED = Path(__file__).parent / "cuda" / "cleared.json"
_FILE = "trials.json"


def keep_trial(plan: str, device: torch.device, reason: str) -> str:
    """Keep what became of trying a plan on a GPU; `reason`: what is wrong with it, empty where it passed.

    Returns why it can't be kept, empty where it is.
    """
    gpu = records.gpu_identity(device)
    entry = {"plan": plan, "gpu": gpu, "date": date.today().isoformat(), "reason": reason}
    lost = records.keep_record(_FILE, _key(plan, gpu), entry)
    tried.cache_clear()
    return lost


@functools.cache  # which every call of a model asks
def tried(plan: str, device: torch.device) -> str | None:
    """What was wrong with a plan when it was tried on this GPU, empty where it passed; None where nobody has tried it.

    It counts as tried by `mbv3fast doctor --check` here, with this driver, these versions and these sources; "blocks"
    also where COMMITTED says that it passed on a GPU of this compute capability, by the library's very sources.
    """
    kept = records.read_record(_FILE, _key(plan, records.gpu_identity(device)))
    if kept is not None:
        return str(kept["reason"])
    return "" if plan == "blocks" and _is_committed(device) else None


def untried(plan: str, device: torch.device) -> str:
    """Why `auto` may not choose a plan that must have been tried; empty where it may."""
    found = tried(plan, device)
    if found is None:
        return f"plan {plan!r} has not been tried on this GPU (mbv3fast doctor --check)"
    return found and f"plan {plan!r} failed when it was tried: {found}"


def commit_trial(path: Path, device: torch.device) -> None:
    """Add to the file of records by compute capability, `path`, that plan "blocks" has passed on this GPU."""
    capability = _capability(device)
    others = [one for one in _read(path) if one["capability"] != capability]
    entry = {
        "capability": capability,
        "sources": library_sources(),
        "gpu": records.gpu_identity(device),
        "date": date.today().isoformat(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps([*others, entry], indent=1) + "\n", encoding="utf-8")


def _is_committed(device: torch.device) -> bool:
    if device.type != "cuda" or lacks_loading():
        return False
    wanted = {"capability": _capability(device), "sources": library_sources()}
    try:
        return any(wanted.items() <= one.items() for one in _read(COMMITTED))
    except ValueError as error:
        logger.warning("%s", error)
        return False


def _capability(device: torch.device) -> str:
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"


def _read(path: Path) -> list[dict[str, Any]]:
    """Raises ValueError, which names the file, for one that isn't as `commit_trial` writes it."""
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        for entry in entries:
            check_keys("an entry", entry, ("capability", "sources", "gpu", "date"))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}; write it with mbv3fast doctor --check --commit") from error
    return entries


def _key(plan: str, gpu: str) -> str:
    return hashlib.sha256(repr((plan, gpu, __version__, records.sources())).encode()).hexdigest()
