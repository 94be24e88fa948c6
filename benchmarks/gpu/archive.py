"""What is kept of a run: the tuner's tables, all rows in a file, everything in an archive."""

from __future__ import annotations

import shutil
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.stage import rows_folder
from benchmarks.names import OURS
from benchmarks.reporting.merging import merged, save
from benchmarks.reporting.rows import read
from mbv3fast.atomic import replacing
from mbv3fast.cuda import tuned as cuda_tuned
from mbv3fast.kernels import tuned as triton_tuned

_PACKED = (".json", ".log", ".csv", ".md", ".png")


def keep_tables(out: Path) -> None:
    """Copy the kernels' tables into the run; or back, where a fresh checkout goes on with it."""
    for tuned, name in ((triton_tuned, "tables"), (cuda_tuned, "cuda-tables")):
        own, kept = tuned.TABLES, out / name
        kept.mkdir(exist_ok=True)
        own.mkdir(exist_ok=True)
        for path in own.glob("*.json"):
            shutil.copy2(path, kept / path.name)
        for path in kept.glob("*.json"):
            if not (own / path.name).exists():
                shutil.copy2(path, own / path.name)


def collect(out: Path) -> dict[str, Any]:
    """All rows of a run, in results.json too; empty where there are none. Files that a cut has damaged are left out."""
    readable: list[Path] = []
    machine: Any = None  # of the first
    for path in sorted(rows_folder(out).glob("*.json")):
        try:
            part = merged([path])
            if any("suite" in row["extra_info"] for row in part["benchmarks"]):  # which reports read, others not
                read(path)
            if readable and part["machine_info"] != machine:
                raise ValueError("of another machine or other versions than those before")
            machine = part["machine_info"]
            readable.append(path)
        except Exception as error:  # whatever is wrong with one must not lose the others
            print(f"left out: {path.name}: {error!r}"[:300])
    whole = merged(readable)
    if whole:
        save(whole, out / "results.json")
    return whole


def pack(out: Path) -> Path:
    """Results, report, logs, profiles and tables in one file."""
    archive = out / "results.tar.gz"
    with replacing(archive) as path, tarfile.open(path, "w:gz") as tar:
        for file in sorted(out.rglob("*")):
            if file.is_file() and file.suffix in _PACKED:
                tar.add(file, Path(out.name, file.relative_to(out)))
    return archive


def summary(whole: Mapping[str, Any]) -> Iterator[str]:
    """A line for each network that was timed: our median and the fastest other's, in a call's view and the GPU's."""
    medians: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in whole.get("benchmarks", ()):
        facts = row["extra_info"]
        if facts.get("suite") == "networks" and facts["cache"] != "cold":
            case = tuple(facts[name] for name in ("variant", "dtype", "batch", "size", "view"))
            medians.setdefault(case, {})[facts["contender"]] = row["stats"]["median"]
    for case, by_name in medians.items():
        ours = by_name.pop(OURS, None)
        others = {name: median for name, median in by_name.items() if not name.startswith(OURS)}
        if ours and others:
            best = min(others, key=lambda name: others[name])
            shown = f"{OURS} {ours * 1e6:,.1f} us, {best} {others[best] * 1e6:,.1f} us, {others[best] / ours:.2f}x"
            yield f"{'-'.join(map(str, case)):<40} {shown}"
