"""How a report writes numbers and tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.names import OURS


def digits(value: float, count: int = 3) -> str:
    """As many significant digits, and no exponent."""
    rounded = float(f"{value:.{count - 1}e}")
    places = count - 1 - math.floor(math.log10(rounded)) if rounded else 0
    return f"{rounded:,.{max(places, 0)}f}"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{digits(seconds * 1e6)} us" if float(f"{seconds:.2e}") < 1e-3 else f"{digits(seconds * 1e3)} ms"


def ratio(theirs: float | None, ours: float | None) -> str:
    """How many times as long; below 10 with two places, and with two digits below 0.1."""
    if not theirs or not ours:
        return ""
    times = theirs / ours
    times = round(times, 2) if times >= 0.1 else times
    return f"{digits(times, 3 if times >= 1 else 2)}x"


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}%"


def table(head: Sequence[str], body: Sequence[Sequence[str]], left: int = 1) -> list[str]:
    """Markdown, without the columns that no row fills, the first `left` of them aligned to the left."""
    lines = [head, ["---" if column < left else "---:" for column in range(len(head))], *body]
    kept = [column for column in range(len(head)) if any(row[column] for row in body)]
    return [*(f"| {' | '.join(cell(line[column]) for column in kept)} |" for line in lines), ""]


def cell(text: str) -> str:
    """One line of plain text; our own name is bold."""
    plain = " ".join(text.split()).replace("|", r"\|").replace("<", "&lt;")
    return f"**{plain}**" if plain == OURS else plain or "-"
