"""Several result files as one, without the times of single calls: what is worth keeping in a repository."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mbv3fast.atomic import replacing

_OF_ROW = ("when", "name", "group", "extra_info")
_OF_COMMIT = ("id", "time", "dirty")


def merged(paths: Iterable[Path]) -> dict[str, Any]:
    """The rows and refusals of files that one machine wrote, in pytest-benchmark's form; empty where there are none.

    Raises ValueError, which names the file, where one is of another machine or other versions.
    """
    parts = [(path, json.loads(path.read_text(encoding="utf-8"))) for path in paths]
    if not parts:
        return {}
    path, newest = max(parts, key=lambda part: part[1]["datetime"])
    for other, part in parts:
        if part["machine_info"] != newest["machine_info"]:
            raise ValueError(f"{other} is of another machine or other versions than {path}")
    return {
        "datetime": newest["datetime"],
        "version": newest.get("version"),
        "commit_info": {name: (newest.get("commit_info") or {}).get(name) for name in _OF_COMMIT},
        "machine_info": newest["machine_info"],
        "benchmarks": [_slim(row, part["datetime"]) for _, part in parts for row in part["benchmarks"]],
        "refused": [{"when": part["datetime"], **no} for _, part in parts for no in part.get("refused") or ()],
    }


def save(whole: Mapping[str, Any], path: Path) -> None:
    """A line for each row and refusal, so that changes can be read."""
    head = {name: value for name, value in whole.items() if name not in ("benchmarks", "refused")}
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in head.items()]
    for name in ("benchmarks", "refused"):
        lines.append(f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, whole[name])) + "\n]")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def _slim(row: Mapping[str, Any], when: str) -> dict[str, Any]:
    """`when` tells which counts where a row occurs twice."""
    stats = {name: _rounded(value) for name, value in row["stats"].items() if name != "data"}
    return {"when": when, **{name: _rounded(row[name]) for name in row if name in _OF_ROW}, "stats": stats}


def _rounded(value: Any) -> Any:
    """Six digits of every number, as many as any clock is good for."""
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value
