"""Launch configurations that were timed: a table for each GPU, which `benchmarks.tune` writes."""

from __future__ import annotations

import functools
import inspect
import json
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mbv3fast.kernels.configs import HEURISTICS, Config, excite_project_blocks

TABLES = Path(__file__).with_name("tables")
HEADER = ("gpu", "date", "torch", "triton", "driver")
GROWS = {  # with the batch; the other sizes are the network's
    "stem_conv": "images",
    "pointwise_conv": "rows",
    "depthwise_conv": "images",
    "depthwise_project": "images",
    "squeeze": "images",
    "excite": "images",
    "excite_project": "images",
    "excite_images": "images",
    "apply_scale": "rows",
    "linear": "rows",
}
OPTIONAL = ("depthwise_project", "excite_project", "excite_images")  # empty where other kernels do it
_NEAR = 2  # times the size that grows, or one in so many
_ANY_NUMBER = ("UNROLL", "num_stages")  # where a configuration has powers of 2 elsewhere

_Index = dict[tuple[Any, ...], dict[int, Config]]  # by op and the sizes that must match, by the size that grows


def tuned(chip: str, op: str, sizes: Mapping[str, int]) -> Config | None:
    """The configuration that was fastest on the GPU named `chip`, None where none was timed there for such sizes.

    sizes: the arguments of the op's heuristic in `kernels.configs`. They match exactly, but for the one that grows with
    the batch: the nearest entry from half to twice of it serves. Raises ValueError for a damaged table.
    """
    index = _index(TABLES, chip) if chip else None
    if index is None:
        return None
    size, entries = sizes[GROWS[op]], index.get(_key(op, sizes), {})
    near = [timed for timed in entries if max(timed, size) <= _NEAR * min(timed, size)]
    return entries[min(near, key=lambda timed: (max(timed, size) / min(timed, size), timed))] if near else None


def complete(op: str, sizes: Mapping[str, int]) -> dict[str, int]:
    """`sizes` and the heuristic's own defaults."""
    return {**sizes, **{name: size for name, size in _defaults(op).items() if name not in sizes}}


def slug(chip: str) -> str:
    """A GPU's name as the name of its table."""
    return re.sub(r"[^a-z0-9]+", "-", chip.lower()).strip("-")


def read(path: Path) -> dict[str, Any]:
    """The table in a file. Raises ValueError, which names the file, where it isn't as `benchmarks.tune` writes it."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        _check(table)
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"{path}: {error}; remove it, or time it anew with benchmarks.tune") from error
    return table


@functools.cache
def _defaults(op: str) -> dict[str, int]:
    parameters = inspect.signature(HEURISTICS[op]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name != "sms"}


@functools.cache
def _index(folder: Path, chip: str) -> _Index | None:
    path = folder / f"{slug(chip)}.json"
    if not path.exists():
        return None
    table = read(path)
    if slug(table["gpu"]) != path.stem:
        raise ValueError(f"{path}: is of {table['gpu']!r}, whose table is {slug(table['gpu'])}.json")
    index: _Index = {}
    for op, entries in table["ops"].items():
        for entry in entries:
            index.setdefault(_key(op, entry["sizes"]), {})[entry["sizes"][GROWS[op]]] = entry["config"]
    return index


def _key(op: str, sizes: Mapping[str, int]) -> tuple[Any, ...]:
    return op, *(size for name, size in sorted(complete(op, sizes).items()) if name != GROWS[op])


def _check(table: Any) -> None:
    _check_keys("the table", table, (*HEADER, "ops"))
    for name in HEADER:
        if not isinstance(table[name], int if name == "driver" else str):
            raise ValueError(f"{name} is {table[name]!r}")
    if not isinstance(table["ops"], dict) or not table["ops"].keys() <= HEURISTICS.keys():
        raise ValueError(f"ops has {list(table['ops'])}, needs some of {', '.join(HEURISTICS)}")
    for op, entries in table["ops"].items():
        if not isinstance(entries, list):
            raise ValueError(f"ops.{op} is {entries!r}, needs a list")
        for number, entry in enumerate(entries):
            _check_entry(f"{op}[{number}]", op, entry)


def _check_entry(where: str, op: str, entry: Any) -> None:
    _check_keys(where, entry, ("sizes", "config", "us", "heuristic_us"))
    sizes, config = complete(op, entry["sizes"]), entry["config"]
    _check_keys(f"{where}.sizes", sizes, inspect.signature(HEURISTICS[op]).parameters.keys() - {"sms"})
    for name, size in sizes.items():
        _check_number(f"{where}.sizes.{name}", size, least=0 if name in _defaults(op) else 1)
    if op not in OPTIONAL or config != {}:
        _check_keys(f"{where}.config", config, _blocks(op, sizes))
    for name, value in config.items():
        _check_number(f"{where}.config.{name}", value, least=1)
        if name not in _ANY_NUMBER and value & (value - 1):
            raise ValueError(f"{where}.config.{name} is {value}, needs a power of 2")
    for name in ("us", "heuristic_us"):
        if not isinstance(entry[name], (int, float)) or not entry[name] > 0:
            raise ValueError(f"{where}.{name} is {entry[name]!r}, needs microseconds")


def _blocks(op: str, sizes: Mapping[str, int]) -> Collection[str]:
    if op == "excite_images":  # else the heuristic's may be empty
        sizes = {**sizes, "images": 128, "itemsize": 2}
    return excite_project_blocks(**sizes) if op == "excite_project" else HEURISTICS[op](**sizes)


def _check_keys(where: str, given: Any, needed: Collection[str]) -> None:
    if not isinstance(given, dict):
        raise ValueError(f"{where} is {given!r}, needs {', '.join(needed)}")
    wrong = ", ".join(sorted(given.keys() ^ set(needed)))
    if wrong:
        raise ValueError(f"{where}: unknown or missing: {wrong}; needs {', '.join(needed)}")


def _check_number(where: str, value: Any, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{where} is {value!r}, needs a whole number from {least}")
