"""Rows by what they are of, and by batch: what tables and charts have in common."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from benchmarks.names import OURS
from benchmarks.reporting.rows import Machine, Row, Subject

VIEWS = {
    "latency": "from the call to its synchronised result",
    "device": "by the GPU's events",
    "stream": "calls enqueued back to back",
}
Lines = dict[str, dict[int, Row]]  # contender, batch, row


class Group(NamedTuple):
    """What a table or a chart is of."""

    machine: Machine
    device: str
    variant: str
    dtype: str
    size: int

    def __str__(self) -> str:
        return f"{self.variant.capitalize()}, {self.dtype}, {self.size}x{self.size}"


class Chart(NamedTuple):
    group: Group
    kind: str  # latency, throughput or floor-batch-N
    name: str  # of its file
    title: str
    png: bytes


def groups(rows: Iterable[Row]) -> dict[Group, list[Row]]:
    """The rows of networks and of their steps, by what they are of."""
    found: dict[Group, list[Row]] = {}
    for row in rows:
        group = Group(row.machine, row.device, row.variant or "", row.dtype or "", row.size or 0)
        found.setdefault(group, []).append(row)
    return dict(sorted(found.items()))


def dates(rows: Iterable[Subject]) -> str:
    """The day they were measured on, or the first and the last."""
    days = sorted({row.when.date().isoformat() for row in rows})
    return " to ".join(days[:1] + days[1:][-1:])


def by_batch(rows: Iterable[Row], views: Sequence[str]) -> tuple[str, Lines]:
    """The first of `views` that there is; for each contender its rows by batch, the fastest at large batches first.

    A contender without that view has another's rows, and its name says so.
    """
    chosen: dict[str, dict[str, dict[int, Row]]] = {}
    for row in rows:
        if row.view and row.view in views and row.batch:
            chosen.setdefault(row.contender, {}).setdefault(row.view, {})[row.batch] = row
    view = next((view for view in views if any(view in found for found in chosen.values())), views[-1])
    lines = {}
    for contender, found in chosen.items():
        own = next(view for view in views if view in found)
        lines[contender if own == view else f"{contender} ({own})"] = dict(sorted(found[own].items()))
    batches = batches_of(lines)[::-1]

    def order(name: str) -> tuple[Any, ...]:
        return (*(lines[name][batch].median if batch in lines[name] else math.inf for batch in batches), name)

    return view, {name: lines[name] for name in sorted(lines, key=order)}


def batches_of(lines: Lines) -> list[int]:
    return sorted({batch for line in lines.values() for batch in line})


def largest_batch(rows: Sequence[Row]) -> int:
    """The largest batch that each network was timed at, by ours if it was."""
    ours = [row for row in rows if row.contender == OURS] or rows
    batches = [{row.batch or 0 for row in found if row.view != "device"} for found in groups(ours).values()]
    return max(set.intersection(*batches) or set.union(*batches), default=1)
