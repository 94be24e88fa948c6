"""What benchmark files hold: pytest-benchmark's JSON, read into rows that are checked, and merged by machine."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, TypeVar

DRY = "dry run: tiny sizes, times mean nothing"
_NEEDED = {
    "networks": ("variant", "batch", "size", "dtype", "view"),
    "steps": ("variant", "batch", "size", "dtype", "view", "op", "step", "index", "shape"),
    "ops": ("batch", "dtype", "view", "op", "shape"),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "suite": tuple(_NEEDED),
    "device": ("gpu", "cpu"),
    "view": ("latency", "device", "stream"),
    "cache": ("warm", "cold"),
}
_ALWAYS = ("suite", "device", "contender")
_TEXTS = (*_ALWAYS, "variant", "dtype", "view", "cache", "op", "step", "shape")
_NUMBERS = ("batch", "size", "index")
_T = TypeVar("_T")
_Timed = TypeVar("_Timed", bound="Subject")


class ResultsError(ValueError):
    """A file that isn't what it should be: one line that begins with its path."""


@dataclass(frozen=True, order=True)
class Machine:
    """Where and with what was measured; texts are empty where there is no GPU."""

    dry_run: bool
    gpu: str
    driver: str
    capability: str
    cpu: str
    cores: int
    versions: tuple[tuple[str, str], ...]

    def name(self, device: str) -> str:
        """What the times of a device are of."""
        if device == "gpu":
            return self.gpu or "no GPU"
        return f"{self.cpu}, {self.cores} core{'s' if self.cores != 1 else ''}"

    @property
    def packages(self) -> str:
        return ", ".join(f"{name} {version}" for name, version in self.versions)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What was to be timed; None where it has no such thing. `when` is its file's date, in UTC."""

    machine: Machine
    when: datetime
    suite: str
    device: str
    contender: str
    variant: str | None
    batch: int | None
    size: int | None
    dtype: str | None
    view: str | None
    cache: str | None
    op: str | None
    step: str | None
    index: int | None
    shape: str | None

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for the same subject at another time."""
        return (self.machine, *(getattr(self, name) for name in (*_TEXTS, *_NUMBERS)))


@dataclass(frozen=True, kw_only=True)
class Refused(Subject):
    """What was not timed, and why; a field that is None stands for all there are."""

    reason: str

    def covers(self, row: Row) -> bool:
        return all(mine is None or mine == its for mine, its in zip(self.key, row.key, strict=True))


@dataclass(frozen=True, kw_only=True)
class Row(Subject):
    """A time: seconds of a call."""

    median: float
    iqr: float
    p50: float
    p99: float | None
    prepared: float | None  # what building and compiling took
    bytes: int | None
    macs: int | None
    launches: int | None
    floor: float | None
    bound: str | None

    @property
    def per_second(self) -> float:
        """Images a second."""
        return (self.batch or 0) / self.median

    @property
    def share(self) -> float | None:
        """Of the floor: 1 is as fast as the machine allows."""
        return None if self.floor is None else self.floor / self.median


@dataclass(frozen=True)
class Results:
    """All rows and refusals, each once; `dry` are the files of dry runs."""

    rows: tuple[Row, ...]
    refused: tuple[Refused, ...]
    dry: tuple[Path, ...] = ()

    @property
    def machines(self) -> list[Machine]:
        found = {subject.machine for subject in (*self.rows, *self.refused)}
        return sorted(found, key=lambda machine: (machine.dry_run, not machine.gpu, machine))

    def only(self, **fields: Any) -> Results:
        """Those whose fields are so."""

        def fits(subject: Subject) -> bool:
            return all(getattr(subject, name) == value for name, value in fields.items())

        return replace(self, rows=tuple(filter(fits, self.rows)), refused=tuple(filter(fits, self.refused)))


class _Entry:
    """An object of a JSON file, whose values are checked as they are read."""

    def __init__(self, value: Any, where: str) -> None:
        if type(value) is not dict:
            raise ResultsError(f"{where}: got {type(value).__name__}, needs an object")
        self._value: dict[str, Any] = value
        self.where = where

    def get(self, name: str, kind: type[_T]) -> _T | None:
        value: Any = self._value.get(name)
        if value is None:
            return None
        if kind is float and type(value) is int:
            value = float(value)
        right = type(value) is kind and (not isinstance(value, int | float) or 0 <= value < math.inf)
        if not right or value not in _CHOICES.get(name, (value,)):
            wanted = " or ".join(_CHOICES.get(name, (kind.__name__,)))
            raise ResultsError(f"{self.where}: {name}: got {str(value)[:80]!r}, needs {wanted}")
        return value

    def need(self, name: str, kind: type[_T]) -> _T:
        value = self.get(name, kind)
        if value is None:
            raise ResultsError(f"{self.where}: {name} is missing")
        return value

    def entry(self, name: str) -> _Entry:
        return _Entry(self.need(name, dict), f"{self.where}: {name}")

    def entries(self, name: str) -> list[_Entry]:
        return [_Entry(value, f"{self.where}: {name}[{index}]") for index, value in enumerate(self.need(name, list))]

    def named(self) -> dict[str, Any]:
        """What names a subject."""
        texts = {name: self.need(name, str) if name in _ALWAYS else self.get(name, str) for name in _TEXTS}
        return {**texts, **{name: self.get(name, int) for name in _NUMBERS}}


def _machine(info: _Entry) -> Machine:
    gpu = info.entry("gpu") if info.get("gpu", dict) is not None else None
    versions = info.entry("versions")
    return Machine(
        dry_run=info.get("dry_run", bool) or False,
        gpu=gpu.need("name", str) if gpu else "",
        driver=gpu.need("driver", str) if gpu else "",
        capability=gpu.need("capability", str) if gpu else "",
        cpu=" ".join((info.entry("cpu").get("brand_raw", str) or "unknown CPU").split()),
        cores=info.need("cores", int),
        versions=tuple((name, versions.need(name, str)) for name in sorted(info.need("versions", dict))),
    )


def _row(entry: _Entry, machine: Machine, when: datetime) -> Row:
    extra, stats = entry.entry("extra_info"), entry.entry("stats")
    named = extra.named()
    for name in _NEEDED[named["suite"]]:
        if named[name] is None:
            raise ResultsError(f"{extra.where}: {name} is missing")
    if named["device"] == "gpu" and not machine.gpu and not machine.dry_run:
        raise ResultsError(f"{extra.where}: device: got 'gpu', but machine_info names none")
    median = stats.need("median", float)
    if median == 0:
        raise ResultsError(f"{stats.where}: median: got 0")
    return Row(
        machine=machine,
        when=when,
        **named,
        median=median,
        iqr=stats.need("iqr", float),
        p50=extra.get("p50", float) or median,
        p99=extra.get("p99", float),
        prepared=extra.get("prepared_s", float),
        bytes=extra.get("bytes", int),
        macs=extra.get("macs", int),
        launches=extra.get("launches", int),
        floor=extra.get("floor_s", float),
        bound=extra.get("bound", str),
    )


def _parsed(path: Path) -> _Entry:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ResultsError(f"{path}: not JSON: {error}") from None
    return _Entry(value, str(path))


def _date(text: str, where: str) -> datetime:
    try:
        when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError as error:
        raise ResultsError(f"{where}: datetime: {error}") from None
    return when.astimezone(timezone.utc) if when.tzinfo else when.replace(tzinfo=timezone.utc)


def read(path: Path) -> Results:
    """The rows and refusals of a file; rows of other suites are passed over."""
    whole = _parsed(path)
    rows = [row for row in whole.entries("benchmarks") if "suite" in (row.get("extra_info", dict) or {})]
    refusals = whole.entries("refused") if whole.get("refused", list) else []
    if not rows and not refusals:
        raise ResultsError(f"{path}: no rows of {', '.join(_NEEDED)}")
    whole_date = whole.need("datetime", str)
    machine = _machine(whole.entry("machine_info"))

    def when(entry: _Entry) -> datetime:
        return _date(entry.get("when", str) or whole_date, entry.where)

    refused = [Refused(machine=machine, when=when(no), **no.named(), reason=no.need("reason", str)) for no in refusals]
    dry = (path,) if machine.dry_run else ()
    return Results(tuple(_row(row, machine, when(row)) for row in rows), tuple(refused), dry)


def merge(parts: Sequence[Results]) -> Results:
    """All in one; where a row or refusal occurs twice, or one after the other, the newer counts."""
    rows = _newest(row for part in parts for row in part.rows)
    refused = _newest(refusal for part in parts for refusal in part.refused)
    kept = [row for row in rows if not any(row.when < no.when and no.covers(row) for no in refused)]
    still = [no for no in refused if not any(no.when < row.when and no.covers(row) for row in kept)]
    return Results(tuple(kept), tuple(still), tuple(path for part in parts for path in part.dry))


def _newest(subjects: Iterable[_Timed]) -> list[_Timed]:
    """Each subject once, in an order that depends on nothing but them."""
    found = {subject.key: subject for subject in sorted(subjects, key=lambda subject: (subject.when, repr(subject)))}
    return [found[key] for key in sorted(found, key=repr)]
