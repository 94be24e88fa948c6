"""How the stages of a run went, written down as they end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.stage import Stage
from mbv3fast.atomic import replacing

ATTEMPTS = 2  # of a stage during which the run was killed each time, before it is given up


@dataclass
class Outcome:
    """How a stage went: "passed", "failed", "timed out", "skipped", or "cut" by the end of the run.

    attempts: those that ended with the run's being killed, this one counted until it ends otherwise.
    """

    name: str
    status: str
    seconds: float = 0.0
    why: str = ""
    attempts: int = 0

    @property
    def ended(self) -> bool:
        return self.status != "cut" or self.attempts >= ATTEMPTS

    def __str__(self) -> str:
        return f"{self.name:<32} {self.status:<10} {self.seconds:7.1f} s  {self.why}".rstrip()


class Journal:
    """Outcomes by stage, in a file that is written anew with each.

    what: the machine and the kind of run. Raises ValueError where the file is of another, or damaged.
    """

    def __init__(self, path: Path, what: Mapping[str, Any]) -> None:
        self._path, self._what = path, dict(what)
        self.outcomes: dict[str, Outcome] = {}
        if not path.exists():
            return
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            of, self.outcomes = dict(kept["run"]), {entry["name"]: Outcome(**entry) for entry in kept["stages"]}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}): give another --out") from None
        if of != self._what:
            raise ValueError(f"{path.parent} holds a run of {_changes(of, self._what)}: give another --out")

    def put(self, outcome: Outcome) -> None:
        self.outcomes[outcome.name] = outcome
        entries = [asdict(each) for each in self.outcomes.values()]
        with replacing(self._path) as path:
            path.write_text(json.dumps({"run": self._what, "stages": entries}, indent=1), encoding="utf-8")

    def of(self, stage: Stage) -> Outcome:
        """The stage's outcome; where it has none, as if it had been cut before it began."""
        return self.outcomes.get(stage.name, Outcome(stage.name, "cut"))

    def bars(self, stage: Stage) -> str:
        """What keeps a stage from being of use: the one before it that has ended otherwise than it must."""
        before = self.outcomes.get(stage.after)
        return f"{before.name}: {before.status}" if before and before.ended and before.status != "passed" else ""

    def left(self, stages: Sequence[Stage]) -> list[Stage]:
        """Those that have not ended."""
        return [stage for stage in stages if not self.of(stage).ended]


def _changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, of a dictionary its entries: "torch 2.11.0, not 2.13.0"."""
    changes = []
    for name in sorted({*before, *now}):
        then, this = before.get(name), now.get(name)
        if isinstance(then, Mapping) and isinstance(this, Mapping):
            changes += [_changes(then, this)] if then != this else []
        elif then != this:
            changes.append(f"{name} {then}, not {this}")
    return "; ".join(changes)
