"""A report's tables: latency, batches, ops and steps, each machine and device by itself."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.names import OURS
from benchmarks.reporting.grouping import VIEWS, Chart, Group, batches_of, by_batch, dates, groups
from benchmarks.reporting.markdown import cell, digits, duration, percent, ratio, table
from benchmarks.reporting.rows import DRY, Machine, Refused, Results, Row

RATIO = "A ratio says how many times as fast mbv3fast is; below 1 it is the slower."
SHARE = "A floor is the least time that the device's memory and arithmetic allow; a share of 100% would be that."
_REFUSED = ("contender", "variant", "dtype", "size", "op", "step", "shape", "batch", "view", "cache", "reason")


def _refusals(refused: Iterable[Refused]) -> list[str]:
    """Lines of reasons, as few as say exactly what each is the reason for."""
    entries: set[tuple] = {tuple((getattr(no, name),) for name in _REFUSED) for no in refused}
    for place in range(len(_REFUSED)):  # join those that differ in nothing else
        joined: dict[tuple, set] = defaultdict(set)
        for entry in entries:
            joined[entry[:place] + entry[place + 1 :]].update(entry[place])
        entries = set()
        for rest, values in joined.items():
            ordered = tuple(sorted(values, key=lambda value: (value is not None, value or 0)))
            entries.add((*rest[:place], ordered, *rest[place:]))
    lines = []
    for contenders, *what, reasons in sorted(entries, key=repr):
        named = [(name, [v for v in values if v is not None]) for name, values in zip(_REFUSED[1:], what, strict=False)]
        words = [f"{name} {', '.join(map(str, values))}" for name, values in named if values]
        who, why = ", ".join(map(cell, contenders)), "; ".join(cell(reason)[:300] for reason in reasons)
        lines.append(f"- {who} ({'; '.join(words)}): {why}")
    return ["Not timed:", "", *lines, ""] if lines else []


def _section(title: str, note: str, lines: list[str]) -> list[str]:
    return [f"### {title}", "", note, "", *lines] if lines else []


def _at_batch_1(part: Results) -> list[str]:
    part = part.only(suite="networks", batch=1)
    lines = []
    for group, rows in groups(part.rows).items():
        timed: dict[str, dict[str, Row]] = defaultdict(dict)
        for row in rows:
            timed[row.contender][row.cache or row.view or ""] = row
        lines += [f"#### {group}", "", *_latency_table(timed)]
    note = f"Device times are medians {VIEWS['device']}, all others are {VIEWS['latency']}. {RATIO}"
    return _section("Latency at batch 1", note, [*lines, *_refusals(part.refused)])


def _latency_table(timed: dict[str, dict[str, Row]]) -> list[str]:
    head = [
        "contender",
        "p50",
        "p99",
        "ratio",
        "device, warm L2",
        "its IQR",
        "its p99",
        "device, cold L2",
        "to prepare",
    ]
    p50s = {contender: rows["latency"].p50 for contender, rows in timed.items() if "latency" in rows}
    body = []
    for contender in sorted(timed, key=lambda name: (p50s.get(name, math.inf), name)):
        p50, (host, warm, cold) = p50s.get(contender), map(timed[contender].get, ("latency", "warm", "cold"))
        device = (warm.median, warm.iqr, warm.p99) if warm else (None, None, None)
        prepared = [row.prepared for row in timed[contender].values() if row.prepared is not None]
        cells = [duration(p50), duration(host.p99 if host else None), ratio(p50, p50s.get(OURS))]
        cells += [*map(duration, (*device, cold.median if cold else None))]
        body.append([contender, *cells, f"{digits(max(prepared))} s" if prepared else ""])
    return table(head, body)


def _by_batch(part: Results, charts: Sequence[Chart]) -> list[str]:
    part = part.only(suite="networks")
    lines = []
    for group, rows in groups(part.rows).items():
        view, timed = by_batch(rows, ["stream", "latency"])
        batches = batches_of(timed)
        head = ["contender", *(f"batch {batch}" for batch in batches)]
        for what in ("time of a call", "images a second") if batches else ():
            of = (
                (lambda row: duration(row.median)) if what == "time of a call" else (lambda row: digits(row.per_second))
            )
            body = [[name, *(of(row) if (row := line.get(n)) else "" for n in batches)] for name, line in timed.items()]
            lines += [f"#### {group}: {what}, {VIEWS[view]}", "", *table(head, body)]
        lines += _pictures(charts, group, "latency", "throughput")
    others = [no for no in part.refused if no.batch != 1]
    return _section("By batch", "Medians, the fastest at the largest batch first.", [*lines, *_refusals(others)])


def _pictures(charts: Sequence[Chart], group: Group, *kinds: str) -> list[str]:
    shown = [chart for chart in charts if chart.group == group and chart.kind.startswith(kinds)]
    return [line for chart in shown for line in (f"![{cell(chart.title)}]({chart.name})", "")]


def _ops(part: Results) -> list[str]:
    part = part.only(suite="ops")
    tables: dict[tuple, dict[tuple, dict[str, Row]]] = {}
    for row in part.rows:
        title = (row.op, row.dtype, row.view, row.cache or "")
        numbers = tuple(map(int, re.findall(r"\d+", row.shape or "")))  # so that 16 comes before 112
        case = (row.batch, numbers, row.shape, row.size or 0)
        tables.setdefault(title, {}).setdefault(case, {})[row.contender] = row
    lines = []
    for (op, dtype, view, cache), cases in sorted(tables.items()):
        names = sorted({name for rows in cases.values() for name in rows}, key=lambda name: (name != OURS, name))
        head = ["shape", "batch", *names, "GB/s", "TFLOP/s", "floor", "bound", "share"]
        body = []
        for (batch, _, shape, _), rows in sorted(cases.items()):
            times = [duration(rows[name].median) if name in rows else "" for name in names]
            body.append([shape, str(batch), *times, *_rates(rows.get(OURS))])
        lines += [f"#### {op}, {dtype}, {VIEWS[view]}{f', {cache} L2' if cache else ''}", "", *table(head, body)]
    note = f"Medians of a call; the columns behind the times are {OURS}'s. {SHARE}"
    return _section("By op", note, [*lines, *_refusals(part.refused)])


def _rates(row: Row | None) -> list[str]:
    """What ours reads and writes, and computes, a second; its floor, by what, and the share of it."""
    if row is None:
        return [""] * 5
    speeds = [row.bytes and row.bytes / row.median / 1e9, row.macs and 2 * row.macs / row.median / 1e12]
    return [*(digits(v) if v else "" for v in speeds), duration(row.floor), row.bound or "", percent(row.share)]


def _steps(part: Results, charts: Sequence[Chart]) -> list[str]:
    part = part.only(suite="steps")
    lines = []
    for group, of_group in groups(part.rows).items():
        tables: dict[tuple, dict[tuple, dict[str, Row]]] = {}
        for row in of_group:
            steps = tables.setdefault((row.batch, row.contender != OURS, row.contender, row.view), {})
            steps.setdefault((row.index, row.step, row.op, row.shape), {})[row.cache or "none"] = row
        for (batch, _, contender, view), steps in sorted(tables.items()):
            lines += [f"#### {group}, batch {batch}: {contender}, {VIEWS[view]}", "", *_step_table(steps)]
        lines += _pictures(charts, group, "floor")
    return _section("By step", f"Medians, in the order of the plan. {SHARE}", [*lines, *_refusals(part.refused)])


_CACHES = ("none", "warm", "cold")


def _step_table(steps: dict[tuple, dict[str, Row]]) -> list[str]:
    """Each time beside its own floor: a cold cache has another."""
    head = ["", "step", "op", "shape", "bound", "time", "warm", "cold", "floor", "floor, warm", "floor, cold"]
    head += ["share of the floor", "share, warm", "share, cold", "launches"]
    body, sums = [], []
    for (index, step, op, shape), rows in sorted(steps.items()):
        any_of = next(iter(rows.values()))
        found = [rows.get(cache) for cache in _CACHES]
        figures = [*(row and row.median for row in found), *(row and row.floor for row in found), any_of.launches]
        body.append([str(index), step, op, shape, any_of.bound or "", *_step_cells(figures)])
        sums.append(figures)
    total = [None if None in column else sum(column) for column in zip(*sums, strict=True)]
    return table(head, [*body, ["", "total", "", "", "", *_step_cells(total)]], 5)


def _step_cells(figures: Sequence[Any]) -> list[str]:
    """Three times, their floors, and launches."""
    times, floors, launches = figures[:3], figures[3:6], figures[6]
    known = [time and floor for time, floor in zip(times, floors, strict=True)]
    shares = [percent(floor / time if floor else None) for time, floor in zip(times, known, strict=True)]
    return [*map(duration, (*times, *known)), *shares, "" if launches is None else str(launches)]


def report(results: Results, charts: Sequence[Chart]) -> str:
    """All of it in Markdown, each machine and each of its devices by itself."""
    machines = list(enumerate(results.machines, 1))
    mark = {machine: f" ({DRY})" if machine.dry_run else "" for _, machine in machines}
    lines = [f"# Measurements of mbv3fast{min(mark.values())}", "", "## Where measured", ""]
    for number, machine in machines:
        date = dates(results.only(machine=machine).rows or results.only(machine=machine).refused)
        lines += [f"Machine {number}{mark[machine]}:", "", f"- GPU: {machine.gpu or 'none'}{driver(machine)}"]
        lines += [f"- CPU: {machine.name('cpu')}", f"- Versions: {machine.packages}", f"- Date: {date}", ""]
    for device in ("gpu", "cpu"):
        for number, machine in machines:
            part = results.only(machine=machine, device=device)
            body = [*_at_batch_1(part), *_by_batch(part, charts), *_ops(part), *_steps(part, charts)]
            title = f"## {device.upper()}: {machine.name(device)} (machine {number}){mark[machine]}"
            lines += [title, "", *body] if body else []
    return "\n".join(lines)


def driver(machine: Machine) -> str:
    """What a GPU's name is followed by."""
    return f", compute capability {machine.capability}, driver {machine.driver}" if machine.gpu else ""
