"""From a checkout on a bare GPU machine to evidence, in one command: correctness, tuning, benchmarks, profiles.

    python -m benchmarks.gpu_run --out run --minutes 9
    python -m benchmarks.gpu_run --out run --minutes 4 --resume

Stages run in the order of `benchmarks.gpu.stages` while the minutes last, each in processes of its own with a limit of
time. What ends is written down and packed into results.tar.gz at once, so that a cut loses the stage that it cuts;
--resume goes on with that. --dry-run runs every stage on a CPU, tiny.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.gpu.archive import collect, keep_tables, pack, summary
from benchmarks.gpu.journal import Journal, Outcome
from benchmarks.gpu.stage import PYTHON, ROOT, Stage, rows_folder
from benchmarks.gpu.stages import stages
from benchmarks.machine import DEVICE, machine_info
from benchmarks.processes import OverError, alone, run

RESERVE = 20  # seconds of the run for the report and the archive
_LEAST = 15  # seconds that must be left for a stage to begin
_TAIL = 6  # lines of the log of a stage that went wrong


def run_all(todo: Sequence[Stage], out: Path, journal: Journal, until: float) -> None:
    """Every stage that has not ended, while there is time."""
    for stage in journal.left(todo):
        left = until - time.monotonic()
        lacks = stage.lacks or journal.bars(stage)
        if lacks:
            outcome = Outcome(stage.name, "skipped", why=lacks)
        elif left < _LEAST:
            continue
        else:
            print(f"{stage.name} …", flush=True)
            before = journal.of(stage)
            journal.put(Outcome(stage.name, "cut", attempts=before.attempts + 1))  # as it stays if this is killed
            try:
                outcome = run_stage(stage, out, left, before.attempts)
            except (KeyboardInterrupt, SystemExit):
                journal.put(Outcome(stage.name, "cut", why="interrupted", attempts=before.attempts))
                raise
        journal.put(outcome)
        print(outcome, flush=True)
        if outcome.status in ("failed", "timed out"):
            print(_tail(out, stage), flush=True)
        pack(out)


def run_stage(stage: Stage, out: Path, left: float, attempts: int = 0) -> Outcome:
    """Within its limit, or the `left` seconds of the run; `attempts` were killed before."""
    begin = time.monotonic()
    log = _log(out, stage)
    log.parent.mkdir(exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        try:
            commands = [*stage.commands, *(stage.late() if stage.late else ())]
            if not commands:
                return Outcome(stage.name, "skipped", why="there is nothing for it to do")
            faults = run(commands, file, min(stage.limit, left), stage.at_once, ROOT)
            status, why = ("failed" if faults else "passed"), "; ".join(faults)
        except OverError as over:
            status, why = ("timed out" if left >= stage.limit else "cut"), str(over)
        except (ValueError, KeyError, TypeError) as error:  # of what another stage has left
            status, why = "failed", repr(error)
    return Outcome(stage.name, status, round(time.monotonic() - begin, 1), why, attempts)


def _log(out: Path, stage: Stage) -> Path:
    return out / "logs" / f"{stage.name}.log"


def _tail(out: Path, stage: Stage) -> str:
    lines = _log(out, stage).read_text(encoding="utf-8", errors="replace").splitlines()[-_TAIL:]
    return "\n".join(f"    | {line[:200]}" for line in lines)


def finish(out: Path, seconds: float) -> None:
    """All rows in one file, a report of them within so many seconds, the archive, and a short table."""
    whole = collect(out)
    pack(out)
    if whole:
        command = (*PYTHON, "benchmarks.report", str(out / "results.json"), "--out", str(out))
        print(run_stage(Stage("report", (command,), seconds), out, seconds))
    for line in summary(whole):
        print(line)
    print(f"{pack(out)}: {len(whole.get('benchmarks', ()))} rows, {len(whole.get('refused', ()))} refused")


def parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.gpu_run", description=__doc__, formatter_class=raw)
    parser.add_argument("--out", type=Path, required=True, help="a folder for all that comes of it")
    parser.add_argument("--minutes", type=float, default=9, help="for all of it, 9 by default")
    parser.add_argument("--resume", action="store_true", help="go on with the run in OUT")
    parser.add_argument("--dry-run", action="store_true")
    return parser.parse_args(argv)


def _terminated(number: int, _frame: object) -> None:
    """End as by an exception, and once: a second signal must not keep the first from ending what runs."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def begun(options: argparse.Namespace, out: Path) -> Journal:
    """The journal of the run that is asked for. Raises ValueError where it can't be, or not here."""
    path = out / "stages.json"
    if not 0 < options.minutes < math.inf:
        raise ValueError(f"--minutes: got {options.minutes:g}, needs some")
    if not options.dry_run and DEVICE == "cpu":
        raise ValueError("needs a CUDA device; --dry-run does without")
    if path.exists() and not options.resume:
        raise ValueError(f"{out} holds a run: --resume goes on with it, another --out begins one")
    if options.resume and not path.exists():
        raise ValueError(f"{out} holds no run to go on with")
    rows_folder(out).mkdir(parents=True, exist_ok=True)
    return Journal(path, {**machine_info(), "dry_run": options.dry_run})


def run_and_keep(options: argparse.Namespace, out: Path, journal: Journal, end: float) -> int:
    """All that there is time for until `end`; the exit code."""
    todo = stages(out, options.dry_run)
    if not options.dry_run:
        keep_tables(out)
    interrupted = False
    try:
        run_all(todo, out, journal, end - RESERVE)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        if not options.dry_run:
            keep_tables(out)
        finish(out, max(10.0, end - time.monotonic()))
    left = ", ".join(stage.name for stage in journal.left(todo))
    print(f"left: {left}; go on with --resume" if left else "all stages have ended")
    if interrupted:
        return 128 + signal.SIGINT
    return 1 if any(outcome.status in ("failed", "timed out") for outcome in journal.outcomes.values()) else 0


def main(argv: Sequence[str] | None = None) -> int:
    options = parsed(argv)
    end = time.monotonic() + 60 * options.minutes
    signal.signal(signal.SIGTERM, _terminated)
    out = options.out.resolve()
    with ExitStack() as held:
        try:
            journal = begun(options, out)
            held.enter_context(alone(out))
        except (ValueError, OSError) as error:
            print(f"gpu_run: {error}", file=sys.stderr)
            return 1
        return run_and_keep(options, out, journal, end)


if __name__ == "__main__":
    sys.exit(main())
