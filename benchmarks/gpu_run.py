"""From a checkout on a bare GPU machine to evidence, in one command: correctness, tuning, benchmarks, profiles.

    python -m benchmarks.gpu_run --out run --minutes 9
    python -m benchmarks.gpu_run --out run --minutes 4 --resume

Stages run in the order of `benchmarks.gpu.stages` while the minutes last, each in processes of its own with a limit of
time. What ends is written down at once, so that a cut loses the stage that it cuts; --resume goes on with that. Rows,
logs and a report are packed into results.tar.gz. --dry-run runs every stage on a CPU, tiny.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tarfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.processes import OverError, run
from benchmarks.gpu.stages import PYTHON, ROOT, Stage, rows_folder, stages
from benchmarks.reporting.merging import merged, save
from mbv3fast.atomic import replacing
from mbv3fast.kernels.tuned import TABLES

ATTEMPTS = 2  # of a stage that is cut each time, before it counts as ended
RESERVE = 20  # seconds of the run for the report and the archive
_LEAST = 15  # seconds that must be left for a stage to begin


@dataclass
class Outcome:
    """How a stage went: "passed", "failed", "timed out", "skipped", or "cut" by the end of the run."""

    name: str
    status: str
    seconds: float = 0.0
    why: str = ""
    attempts: int = 0

    @property
    def ended(self) -> bool:
        return self.status != "cut" or self.attempts >= ATTEMPTS


class Journal:
    """Outcomes by stage, in a file that is written anew with each."""

    def __init__(self, path: Path, dry: bool) -> None:
        self._path, self._dry = path, dry
        self.outcomes: dict[str, Outcome] = {}
        if path.exists():
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["dry_run"] != dry:
                raise ValueError(
                    f"{path.parent} holds a {'dry' if kept['dry_run'] else 'real'} run: give another --out"
                )
            self.outcomes = {entry["name"]: Outcome(**entry) for entry in kept["stages"]}

    def put(self, outcome: Outcome) -> None:
        self.outcomes[outcome.name] = outcome
        entries = [asdict(each) for each in self.outcomes.values()]
        with replacing(self._path) as path:
            path.write_text(json.dumps({"dry_run": self._dry, "stages": entries}, indent=1), encoding="utf-8")


def run_all(todo: Sequence[Stage], out: Path, journal: Journal, until: float) -> None:
    """Every stage that has not ended, while there is time."""
    for stage in todo:
        before = journal.outcomes.get(stage.name, Outcome(stage.name, "cut"))
        if before.ended:
            continue
        if stage.lacks:
            outcome = Outcome(stage.name, "skipped", why=stage.lacks)
        elif until - time.monotonic() < _LEAST:
            continue
        else:
            started = Outcome(stage.name, "cut", attempts=before.attempts + 1)
            journal.put(started)
            outcome = run_stage(stage, out, until - time.monotonic(), started.attempts)
        journal.put(outcome)
        print(_line(outcome), flush=True)


def run_stage(stage: Stage, out: Path, left: float, attempts: int = 1) -> Outcome:
    """Within its limit, or the `left` seconds of the run."""
    commands = [*stage.commands, *(stage.late() if stage.late else ())]
    if not commands:
        return Outcome(stage.name, "skipped", why="there is nothing for it to do")
    begin = time.monotonic()
    log = out / "logs" / f"{stage.name}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        try:
            faults = run(commands, file, min(stage.limit, left), stage.at_once, ROOT)
            status, why = ("failed" if faults else "passed"), "; ".join(faults)
        except OverError as over:
            status, why = ("timed out" if left >= stage.limit else "cut"), str(over)
    return Outcome(stage.name, status, round(time.monotonic() - begin, 1), why, attempts)


def report(out: Path) -> Outcome:
    """Tables and charts of results.json."""
    command = (*PYTHON, "benchmarks.report", str(out / "results.json"), "--out", str(out))
    return run_stage(Stage("report", (command,), 120), out, 120)


def pack(out: Path) -> Path:
    """The archive: results, report, logs, profiles and the tuner's table."""
    archive = out / "results.tar.gz"
    with replacing(archive) as path, tarfile.open(path, "w:gz") as tar:
        for file in sorted(out.rglob("*")):
            if file.is_file() and file.suffix in (".json", ".log", ".csv", ".md", ".png"):
                tar.add(file, Path(out.name, file.relative_to(out)))
        for table in sorted(TABLES.glob("*.json")):
            tar.add(table, Path(out.name, "tables", table.name))
    return archive


def summary(whole: Mapping[str, Any]) -> Iterator[str]:
    """A line for each network that was timed: our median and the fastest other's, in a call's view and the GPU's."""
    medians: dict[tuple[Any, ...], dict[str, float]] = {}
    for row in whole.get("benchmarks", ()):
        facts = row["extra_info"]
        if facts.get("suite") == "networks" and facts["cache"] != "cold":
            case = tuple(facts[name] for name in ("variant", "dtype", "batch", "size", "view"))
            medians.setdefault(case, {})[facts["contender"]] = row["stats"]["median"]
    for case, by_name in medians.items():
        ours = by_name.pop("mbv3fast", None)
        others = {name: median for name, median in by_name.items() if not name.startswith("mbv3fast")}
        if ours and others:
            best = min(others, key=lambda name: others[name])
            shown = f"{ours * 1e6:,.1f} us, {best} {others[best] * 1e6:,.1f} us, {others[best] / ours:.2f}x"
            yield f"{'-'.join(map(str, case)):<40} {shown}"


def _line(outcome: Outcome) -> str:
    return f"{outcome.name:<40} {outcome.status:<10} {outcome.seconds:7.1f} s  {outcome.why}".rstrip()


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.gpu_run", description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, required=True, help="a folder for all that comes of it")
    parser.add_argument("--minutes", type=float, default=9)
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUT")
    parser.add_argument("--dry-run", action="store_true")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    options = parsed(argv)
    until = time.monotonic() + 60 * options.minutes - RESERVE
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    out = options.out.resolve()
    path = out / "stages.json"
    reason = refusal(path, options)
    if reason:
        print(f"gpu_run: {reason}", file=sys.stderr)
        return 1
    rows_folder(out).mkdir(parents=True, exist_ok=True)
    journal, todo = Journal(path, options.dry_run), stages(out, options.dry_run)
    run_all(todo, out, journal, until)
    whole = merged(sorted(rows_folder(out).glob("*.json")))
    if whole:
        save(whole, out / "results.json")
        print(_line(report(out)))
    for line in summary(whole):
        print(line)
    left = [
        stage.name for stage in todo if stage.name not in journal.outcomes or not journal.outcomes[stage.name].ended
    ]
    print(f"{pack(out)}: {len(whole.get('benchmarks', ()))} rows, {len(whole.get('refused', ()))} refused")
    print(f"left: {', '.join(left)}; go on with --resume" if left else "all stages have ended")
    return 1 if any(outcome.status in ("failed", "timed out") for outcome in journal.outcomes.values()) else 0


def refusal(path: Path, options: argparse.Namespace) -> str:
    """Why there can be no run, empty where there can."""
    import torch

    if not options.dry_run and not torch.cuda.is_available():
        return "needs a CUDA device; --dry-run does without"
    if path.exists() and not options.resume:
        return f"{path.parent} holds a run: --resume goes on with it, another --out begins one"
    try:
        Journal(path, options.dry_run)
    except (ValueError, TypeError, KeyError) as error:
        return f"{path}: {error}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
