"""The README's section on performance."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path

from benchmarks.names import GPU_ONLY, OURS
from benchmarks.reporting.grouping import VIEWS, by_batch, dates, groups, largest_batch
from benchmarks.reporting.markdown import cell, digits, duration, ratio, table
from benchmarks.reporting.rows import DRY, Results, ResultsError
from benchmarks.reporting.tables import RATIO, driver

BEGIN, END = "<!-- performance: made by benchmarks.report -->", "<!-- performance: end -->"
_WIDTH = 120


def readme_section(results: Results) -> str:
    """What stands between the README's markers, them included: float16 on GPUs, then all dtypes on CPUs."""
    on_gpu = results.only(suite="networks", device="gpu", dtype="float16")
    dtype = "in float16 " if results.only(device="gpu").rows else ""
    lines = [] if on_gpu.rows else [f"Not measured {dtype}on a GPU yet.", ""]
    for part in (on_gpu, results.only(suite="networks", device="cpu")):
        for machine, dtype, size in sorted({(row.machine, row.dtype or "", row.size or 0) for row in part.rows}):
            lines += _readme_table(part.only(machine=machine, dtype=dtype, size=size))
    return "\n".join([BEGIN, *lines, END])


def _readme_table(part: Results) -> list[str]:
    rows, (machine, device, _, dtype, size) = part.rows, next(iter(groups(part.rows)))
    most, gpu = (largest_batch(rows), True) if device == "gpu" else (8, False)
    views, body = ["stream", "latency"] if gpu else ["latency"], []
    for group, found in groups(rows).items():
        one = {row.contender: row.p50 for row in found if (row.view, row.batch) == ("latency", 1)}
        many = {line[most].contender: line[most] for line in by_batch(found, views)[1].values() if most in line}
        for name in sorted({*one, *many}, key=lambda name: (one.get(name, math.inf), name)):
            cells = [duration(one.get(name)), ratio(one.get(name), one.get(OURS)), "", ""]
            if row := many.get(name):
                cells[2] = digits(row.per_second) if gpu else duration(row.median)
                cells[2] += f" ({row.view})" if row.view != views[0] else ""
                cells[3] = ratio(row.median, many[OURS].median) if OURS in many and many[OURS].view == row.view else ""
            body.append([group.variant.capitalize(), name, *cells])
    where = f"{device.upper()}: {machine.name(device)}{driver(machine) if gpu else ''}, {dtype}, {size}x{size}"
    what = f"; images a second, {VIEWS[views[0]]}, at batch {most}" if gpu else f" and {most}"
    head = ["network", "contender", "batch 1", "ratio", f"{'images/s, ' if gpu else ''}batch {most}", "ratio"]
    wanted = [no for no in part.refused if no.batch in (None, 1, most) and (gpu or no.reason != GPU_ONLY)]
    refused = {(no.contender, cell(no.reason)[:100]) for no in wanted}
    missing = "; ".join(f"{contender}: {reason}" for contender, reason in sorted(refused))
    text = f"{where}, {machine.packages}, {dates(rows)}: medians {VIEWS['latency']} at batch 1{what}. {RATIO}"
    left_out = [*textwrap.wrap(f"Not timed: {missing}", _WIDTH), ""] if missing else []
    return [*textwrap.wrap(text, _WIDTH), "", *table(head, body, 2), *left_out]


def rewritten(path: Path, results: Results) -> bytes:
    """The file with the section that `results` make. Raises ResultsError for dry runs, or other than two markers."""
    if results.dry:
        raise ResultsError(f"{results.dry[0]}: {DRY}, so it can't go into {path}")
    content = path.read_bytes()
    newline = b"\r\n" if b"\r\n" in content else b"\n"
    before, _, rest = content.partition(BEGIN.encode())
    _, end, after = rest.partition(END.encode())
    if not end or any(content.count(marker.encode()) != 1 for marker in (BEGIN, END)):
        raise ResultsError(f"{path}: needs {BEGIN} and, behind it, {END}, each once")
    return before + readme_section(results).encode().replace(b"\n", newline) + after
