"""Tables of launch configurations that were timed, one a GPU and family of kernels, written by `benchmarks.tune`.

What a configuration is, and which sizes it is asked for, is the family's: `kernels.tuned`, `cuda.tuned`.
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEADER = ("gpu", "date", "torch", "triton", "driver")
_NEAR = 2  # times the size that grows, or one in so many
_CHIP = ("sms", "capability")  # arguments of heuristics that are the GPU's, not sizes

_Index = dict[tuple[Any, ...], dict[int, Any]]  # by op and the sizes that must match, by the size that grows


@dataclass(frozen=True, eq=False)
class Family:
    """Kernels with tables. heuristics: by op, the function of sizes that configures where no table does.

    grows: by op, the size that grows with the batch; the others are the network's. check: raises ValueError for an
    entry's sizes and configuration that can't be, given where the entry stands and its op.
    """

    heuristics: Mapping[str, Callable[..., Any]]
    grows: Mapping[str, str]
    check: Callable[[str, str, Mapping[str, Any], Any], None]

    def find(self, folder: Path, chip: str, op: str, sizes: Mapping[str, Any]) -> Any:
        """What was fastest on the GPU named `chip`, by its table in `folder`; None where nothing was timed for such
        sizes.

        sizes: the arguments of the op's heuristic. They match exactly, but for the one that grows with the batch: the
        nearest entry from half to twice of it serves. Raises ValueError for a damaged table.
        """
        index = self._index(folder, chip) if chip and op in self.grows else None
        if index is None:
            return None
        size, entries = sizes[self.grows[op]], index.get(self._key(op, sizes), {})
        near = [timed for timed in entries if max(timed, size) <= _NEAR * min(timed, size)]
        return entries[min(near, key=lambda timed: (max(timed, size) / min(timed, size), timed))] if near else None

    def complete(self, op: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
        """`sizes` and the heuristic's own defaults."""
        return {**sizes, **{name: size for name, size in self.defaults(op).items() if name not in sizes}}

    def defaults(self, op: str) -> dict[str, Any]:
        """Of the sizes that have one."""
        return {p.name: p.default for p in _parameters(self.heuristics[op]) if p.default is not p.empty}

    def read(self, path: Path) -> dict[str, Any]:
        """The table in a file. Raises ValueError, which names the file, where it isn't as it was written."""
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            self._check(table)
        except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
            raise ValueError(f"{path}: {error}; remove it, or time it anew with benchmarks.tune") from error
        return table

    @functools.cache  # noqa: B019 # families live as long as the process
    def _index(self, folder: Path, chip: str) -> _Index | None:
        path = folder / f"{slug(chip)}.json"
        if not path.exists():
            return None
        table = self.read(path)
        if slug(table["gpu"]) != path.stem:
            raise ValueError(f"{path}: is of {table['gpu']!r}, whose table is {slug(table['gpu'])}.json")
        index: _Index = {}
        for op, entries in table["ops"].items():
            for entry in entries:
                index.setdefault(self._key(op, entry["sizes"]), {})[entry["sizes"][self.grows[op]]] = entry["config"]
        return index

    def _key(self, op: str, sizes: Mapping[str, Any]) -> tuple[Any, ...]:
        return op, *(size for name, size in sorted(self.complete(op, sizes).items()) if name != self.grows[op])

    def _check(self, table: Any) -> None:
        check_keys("the table", table, (*HEADER, "ops"))
        for name in HEADER:
            if type(table[name]) is not (int if name == "driver" else str):
                raise ValueError(f"{name} is {table[name]!r}")
        if not isinstance(table["ops"], dict) or not table["ops"].keys() <= self.grows.keys():
            raise ValueError(f"ops has {list(table['ops'])}, needs some of {', '.join(self.grows)}")
        for op, entries in table["ops"].items():
            if not isinstance(entries, list):
                raise ValueError(f"ops.{op} is {entries!r}, needs a list")
            for number, entry in enumerate(entries):
                self._check_entry(f"{op}[{number}]", op, entry)
            sizes = [self.complete(op, entry["sizes"]) for entry in entries]
            if twice := [one for number, one in enumerate(sizes) if one in sizes[:number]]:
                raise ValueError(f"ops.{op} has two entries for {twice[0]}")

    def _check_entry(self, where: str, op: str, entry: Any) -> None:
        check_keys(where, entry, ("sizes", "config", "us", "heuristic_us"))
        sizes = self.complete(op, entry["sizes"])
        check_keys(f"{where}.sizes", sizes, {p.name for p in _parameters(self.heuristics[op])})
        self.check(where, op, sizes, entry["config"])
        for name in ("us", "heuristic_us"):
            if type(entry[name]) not in (int, float) or not 0 < entry[name] < math.inf:
                raise ValueError(f"{where}.{name} is {entry[name]!r}, needs microseconds")


def slug(chip: str) -> str:
    """A GPU's name as the name of its table."""
    return re.sub(r"[^a-z0-9]+", "-", chip.lower()).strip("-")


def check_keys(where: str, given: Any, needed: Collection[str]) -> None:
    """Raise ValueError unless `given` is a dict of these keys."""
    if not isinstance(given, dict):
        raise ValueError(f"{where} is {given!r}, needs {', '.join(needed)}")
    wrong = ", ".join(sorted(given.keys() ^ set(needed)))
    if wrong:
        raise ValueError(f"{where}: unknown or missing: {wrong}; needs {', '.join(needed)}")


def check_number(where: str, value: Any, least: int) -> None:
    """Raise ValueError unless `value` is a whole number from `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{where} is {value!r}, needs a whole number from {least}")


@functools.cache
def _parameters(heuristic: Callable[..., Any]) -> list[inspect.Parameter]:
    """Those that are sizes."""
    return [p for p in inspect.signature(heuristic).parameters.values() if p.name not in _CHIP]
