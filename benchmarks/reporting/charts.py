"""The charts of a report, as PNG files' bytes."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from typing import Any, cast

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from benchmarks.names import OURS
from benchmarks.reporting.grouping import VIEWS, Chart, Group, Lines, batches_of, by_batch, dates, groups
from benchmarks.reporting.rows import DRY, Results, Row

# Okabe and Ito's colours, which the colour-blind tell apart; ours has one to itself. Markers differ as well.
_OURS, *_COLOURS = "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000", "#7F7F7F"
_MARKERS = "sD^vP*X"
_DPI = 130


def draw(results: Results) -> list[Chart]:
    """All the charts there are rows for."""
    charts: list[Chart | None] = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the reader's own settings are
        for group, rows in groups(results.only(suite="networks").rows).items():
            charts += [_latency(results, group, rows), _throughput(results, group, rows)]
        for group, rows in groups(results.only(suite="steps", contender=OURS).rows).items():
            for batch in sorted({row.batch or 0 for row in rows}):
                floored = [row for row in rows if row.batch == batch and row.share is not None]
                charts.append(_floors(results, group, floored))
    return [chart for chart in charts if chart]


def _latency(results: Results, group: Group, rows: Sequence[Row]) -> Chart | None:
    view, lines = by_batch(rows, ["latency"])
    if not lines:
        return None
    axes = _axes(9.5)
    _draw_lines(axes, lines, lambda row: row.median * 1e3)
    axes.set_yscale("log")
    _round_limits(axes)
    axes.set_ylabel("milliseconds a call, median")
    return _chart(results, group, "latency", f"latency by batch ({VIEWS[view]})", axes, _rows(lines))


def _throughput(results: Results, group: Group, rows: Sequence[Row]) -> Chart | None:
    view, lines = by_batch(rows, ["stream", "latency"])
    if not lines:
        return None
    axes = _axes(9.5)
    _draw_lines(axes, lines, lambda row: row.per_second)
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_ylabel("images a second")
    return _chart(results, group, "throughput", f"images a second by batch ({VIEWS[view]})", axes, _rows(lines))


def _rows(lines: Lines) -> list[Row]:
    return [row for line in lines.values() for row in line.values()]


def _floors(results: Results, group: Group, rows: Sequence[Row]) -> Chart | None:
    """Bars in the order of the plan, for the view by events where there is one."""
    view = "device" if any(row.view == "device" for row in rows) else "latency"
    series: dict[str, dict[tuple[int, str], float]] = {}
    for row in rows:
        if row.view == view:
            series.setdefault(row.cache or "", {})[row.index or 0, row.step or ""] = 100 * (row.share or 0)
    if not series:
        return None
    steps = sorted({step for shares in series.values() for step in shares})
    axes = _axes(max(8.0, 3 + 0.27 * len(steps)), height=5.6)
    width = 0.8 / len(series)
    for place, cache in enumerate(sorted(series, reverse=True)):  # warm, cold
        xs = [x + (place - (len(series) - 1) / 2) * width for x in range(len(steps))]
        heights = [series[cache].get(step, 0) for step in steps]
        label, colour = f"{cache} L2 cache" if cache else OURS, _COLOURS[0] if cache == "cold" else _OURS
        axes.bar(xs, heights, width, label=label, color=colour)
    axes.axhline(100, color="black", linewidth=1, linestyle="--", label="the floor")
    axes.set_xticks(range(len(steps)), [step for _, step in steps], rotation=90, fontsize=8)
    axes.set_xlim(-0.7, len(steps) - 0.3)
    axes.set_ylabel("share of the floor, %")
    what = f"share of the floor per layer, batch {rows[0].batch} ({VIEWS[view]})"
    return _chart(results, group, f"floor-batch-{rows[0].batch}", what, axes, rows)


def _axes(width: float, height: float = 5.0) -> Axes:
    figure = Figure(figsize=(width, height), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    axes.grid(axis="y", color="0.88")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _draw_lines(axes: Axes, lines: Lines, value: Callable[[Row], float]) -> None:
    """A line a contender, whose colour and marker follow from its name among the others; ours the thickest, on top."""
    others = sorted({row.contender for row in _rows(lines)} - {OURS})
    for name in sorted(lines, key=lambda name: -value([*lines[name].values()][-1])):  # as they end on the right
        line = lines[name]
        contender = next(iter(line.values())).contender
        style: dict[str, Any] = {"color": _OURS, "marker": "o", "linewidth": 3, "markersize": 8, "zorder": 3}
        if contender in others:
            again, place = divmod(others.index(contender), len(_COLOURS))
            style = {"color": _COLOURS[place], "marker": _MARKERS[(place + 3 * again) % len(_MARKERS)]}
            style |= {"linestyle": "--", "markerfacecolor": "white"} if again else {}
        axes.plot(list(line), [value(row) for row in line.values()], label=_plain(name), **style)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(batches_of(lines)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
    axes.set_xlabel("batch")


def _plain(name: str) -> str:
    """A label that is no formula, and none of those beginning with _ that matplotlib hides."""
    label = name.replace("$", r"\$")
    return f" {label}" if label.startswith("_") else label


def _round_limits(axes: Axes) -> None:
    """A logarithmic axis from one of 1, 2, 5, 10, 20, … to another, with all of them named."""
    low, high = axes.dataLim.intervaly
    ticks = [step * 10.0**power for power in range(-6, 7) for step in (1, 2, 5)]
    bottom = max(tick for tick in ticks if tick <= low * 0.97)
    top = min(tick for tick in ticks if tick >= high * 1.03)
    axes.set_ylim(bottom, top)
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in ticks if bottom <= tick <= top]))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _chart(results: Results, group: Group, kind: str, what: str, axes: Axes, rows: Sequence[Row]) -> Chart:
    machine, device, variant, dtype, size = group
    title = f"MobileNetV3 {variant.capitalize()}: {what}"
    lines = [title, f"{machine.name(device)}, {dtype}, {size}x{size}, {dates(rows)}"]
    if machine.dry_run:
        lines.insert(0, DRY)
    figure = cast(Figure, axes.figure)
    figure.suptitle("\n".join(lines), x=0.01, ha="left", fontsize=10)
    figure.legend(loc="outside right upper", frameon=False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": ""})
    words = f"{device} {results.machines.index(machine) + 1} {variant} {dtype} {size} {kind}"
    return Chart(group, kind, re.sub("[^a-z0-9]+", "-", words.lower()) + ".png", title, file.getvalue())
