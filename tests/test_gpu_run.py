"""Runs of stages: bounded, written down as they end, cut and gone on with."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import gpu_run
from benchmarks.gpu.archive import collect, keep_tables
from benchmarks.gpu.journal import ATTEMPTS, Journal, Outcome
from benchmarks.gpu.stage import ROOT, Stage
from benchmarks.gpu_run import main, run_all, run_stage
from benchmarks.machine import machine_info
from benchmarks.processes import OverError, alone, run
from tests.reports import Files, row

LONG = 10**3  # seconds
SCRIPT = """
import sys
from pathlib import Path
from benchmarks import gpu_run
from benchmarks.gpu.stage import Stage

done = Path(sys.argv[1])

def stage(name, seconds):
    code = f"import time; time.sleep({{seconds}}); open({{str(done)!r}}, 'a').write('{{name}} ')"
    return Stage(name, ((sys.executable, "-c", code.format(name=name, seconds=seconds, done=done)),), 60)

gpu_run.stages = lambda out, dry: [stage("first", 0), stage("second", {second}), stage("third", 0)]
sys.exit(gpu_run.main(["--dry-run", "--out", sys.argv[2], *sys.argv[3:]]))
"""


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def stage(name: str, *codes: str, limit: float = 30, **named: object) -> Stage:
    return Stage(name, tuple(map(python, codes)), limit, **named)  # type: ignore[arg-type]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "stages.json", {})


def statuses(journal: Journal) -> dict[str, str]:
    return {name: outcome.status for name, outcome in journal.outcomes.items()}


def test_each_stage_ends_as_its_commands_do(tmp_path: Path, journal: Journal) -> None:
    todo = [
        stage("good", "print('said')"),
        stage("bad", "import sys; sys.exit(3)", "pass"),
        stage("hangs", "import time; time.sleep(1000)", limit=1),
        stage("lacking", "assert False", lacks="there is none"),
        Stage("empty", (), 10, late=lambda: iter(())),
        Stage("late", (), 10, late=lambda: iter([python("print('late')")])),
    ]
    begin = time.monotonic()
    run_all(todo, tmp_path, journal, time.monotonic() + LONG)
    assert time.monotonic() - begin < 15
    assert statuses(journal) == {
        "good": "passed",
        "bad": "failed",
        "hangs": "timed out",
        "lacking": "skipped",
        "empty": "skipped",
        "late": "passed",
    }
    outcomes = journal.outcomes
    assert outcomes["bad"].why.endswith("exit code 3")
    assert outcomes["hangs"].why.endswith("no end in 1 s")
    assert outcomes["lacking"].why == "there is none"
    assert (tmp_path / "logs" / "good.log").read_text().endswith("said\n")
    assert Journal(tmp_path / "stages.json", {}).outcomes == outcomes, "all is written down"


def test_what_is_of_no_use_after_another_stage_failed_is_skipped(tmp_path: Path, journal: Journal) -> None:
    todo = [
        stage("bad", "import sys; sys.exit(3)"),
        stage("good", "pass"),
        stage("after bad", "assert False", after="bad"),
        stage("after good", "pass", after="good"),
    ]
    run_all(todo, tmp_path, journal, time.monotonic() + LONG)
    assert statuses(journal) == {"bad": "failed", "good": "passed", "after bad": "skipped", "after good": "passed"}
    assert journal.outcomes["after bad"].why == "bad: failed"
    journal.put(Outcome("bad", "cut", attempts=1))
    assert not journal.bars(todo[2]), "it may yet pass"


def test_the_minutes_bound_the_run_and_what_was_cut_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_run, "_LEAST", 0.5)
    todo = [stage("good", "pass"), stage("cut", "import time; time.sleep(1000)"), stage("never", "pass")]
    for _ in range(ATTEMPTS + 1):  # the minutes are nobody's fault
        journal = Journal(tmp_path / "stages.json", {})
        run_all(todo, tmp_path, journal, time.monotonic() + 2)
        assert statuses(journal) == {"good": "passed", "cut": "cut"}
    assert [each.name for each in journal.left(todo)] == ["cut", "never"]


def test_a_stage_that_kills_the_run_is_given_up(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "stages.json", {})
    todo = [stage("deadly", "pass"), stage("next", "pass")]
    journal.put(Outcome("deadly", "cut", attempts=1))
    assert [each.name for each in journal.left(todo)] == ["deadly", "next"]
    journal.put(Outcome("deadly", "cut", attempts=ATTEMPTS))
    run_all(todo, tmp_path, journal, time.monotonic() + LONG)
    assert statuses(journal) == {"deadly": "cut", "next": "passed"}, "the others get their turn"


def test_commands_side_by_side(tmp_path: Path) -> None:
    codes = [f"import time; time.sleep(1); open({str(tmp_path / str(i))!r}, 'w')" for i in range(4)]
    begin = time.monotonic()
    assert run_stage(stage("four", *codes, at_once=4), tmp_path, LONG).status == "passed"
    assert time.monotonic() - begin < 3.5
    assert len(list(tmp_path.glob("[0-3]"))) == 4


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_what_a_command_started_ends_with_it(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    child = "import time, signal; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(1000)"
    code = f"import subprocess, sys; p = subprocess.Popen([sys.executable, '-c', {child!r}]); "
    code += f"open({str(pid)!r}, 'w').write(str(p.pid)); p.wait()"
    with (tmp_path / "log").open("w") as log, pytest.raises(OverError):
        run([python(code)], log, 2, 1, ROOT)
    deadline = time.monotonic() + 5
    while alive(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(pid.read_text()))


@pytest.mark.parametrize(
    "number",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_killed_in_the_middle_and_resumed_all_is_done_once(tmp_path: Path, number: int) -> None:
    done, out = tmp_path / "done", tmp_path / "out"
    slow, quick = (python(SCRIPT.format(second=second)) for second in (1000, 0))
    process = subprocess.Popen([*slow, str(done), str(out)], cwd=ROOT)
    deadline = time.monotonic() + 60
    while not _began(out, "second") and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    process.wait(30)
    assert done.read_text() == "first "
    result = subprocess.run([*quick, str(done), str(out), "--resume"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert done.read_text() == "first second third "
    assert "all stages have ended" in result.stdout
    attempts = {entry["name"]: entry["attempts"] for entry in json.loads((out / "stages.json").read_text())["stages"]}
    assert attempts == {"first": 0, "second": 1 if number == signal.SIGKILL else 0, "third": 0}
    assert (out / "results.tar.gz").exists()


def _began(out: Path, name: str) -> bool:
    try:
        entries = json.loads((out / "stages.json").read_text())["stages"]
    except (OSError, ValueError):
        return False
    return any(entry["name"] == name for entry in entries)


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str) -> str:
        assert main(["--out", str(tmp_path), *arguments]) == 1
        return capsys.readouterr().err

    path = tmp_path / "stages.json"
    assert "needs a CUDA device; --dry-run does without" in said()
    Journal(path, {**machine_info(), "dry_run": False}).put(Outcome("environment", "passed"))
    assert "holds a run: --resume goes on with it" in said("--dry-run")
    assert "--minutes: got 0, needs some" in said("--dry-run", "--minutes", "0")
    assert "--minutes: got nan" in said("--dry-run", "--minutes", "nan")
    assert "holds a run of dry_run False, not True: give another --out" in said("--dry-run", "--resume")
    path.unlink()
    assert "holds no run to go on with" in said("--dry-run", "--resume")
    here = machine_info()
    versions = {**here["versions"], "torch": "1.0"}
    Journal(path, {**here, "dry_run": True, "versions": versions}).put(Outcome("environment", "passed"))
    assert f"holds a run of torch 1.0, not {here['versions']['torch']}: give" in said("--dry-run", "--resume")
    with alone(tmp_path):
        path.unlink()
        assert "another process is at work there" in said("--dry-run")
    path.write_text("[")
    assert "stages.json is damaged" in said("--dry-run", "--resume")


def test_what_is_missing_or_broken_fails_its_stage_alone(tmp_path: Path, journal: Journal) -> None:
    def broken() -> Iterator[tuple[str, ...]]:
        yield from json.loads("")

    todo = [Stage("missing", (("no-such-program",),), 10), Stage("broken", (), 10, late=broken), stage("good", "pass")]
    run_all(todo, tmp_path, journal, time.monotonic() + LONG)
    assert statuses(journal) == {"missing": "failed", "broken": "failed", "good": "passed"}
    assert journal.outcomes["missing"].why == "no-such-program: No such file or directory"
    assert (tmp_path / "results.tar.gz").exists(), "packed as stages end"


def test_damaged_rows_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    files = Files(rows)
    good = files.write("a-good.json", row(200), row(300, "timm"))
    other = {"benchmarks": [{"name": "other", "extra_info": {}, "stats": {}}]}
    (rows / "b-other-suite.json").write_text(json.dumps(json.loads(good.read_text()) | other))
    files.write("c-nan.json", row(float("nan")))
    files.write("d-other-machine.json", row(200), gpu=None, dry_run=True)
    for name, text in {"cut": "", "list": "[]", "bare": '{"benchmarks": []}', "null": '{"benchmarks": null}'}.items():
        (rows / f"e-{name}.json").write_text(text)
    (rows / "f-folder.json").mkdir()
    whole = collect(tmp_path)
    assert [entry["name"] for entry in whole["benchmarks"]] == ["bench", "bench", "other"]
    assert (tmp_path / "results.json").exists()
    left_out = [line.split()[2] for line in capsys.readouterr().out.splitlines()]
    assert [name.rstrip(":")[0] for name in left_out] == list("cdeeeef")


def test_what_an_ended_command_left_behind_ends(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"import subprocess; p = subprocess.Popen(['sleep', '1000']); open({str(pid)!r}, 'w').write(str(p.pid))"
    assert run_stage(stage("leaves", code), tmp_path, LONG).status == "passed"
    time.sleep(0.2)
    assert not alive(int(pid.read_text()))


def test_tables_travel_with_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels, out = tmp_path / "tables", tmp_path / "out"
    kernels.mkdir(), out.mkdir()
    monkeypatch.setattr("mbv3fast.kernels.tuned.TABLES", kernels)
    monkeypatch.setattr("mbv3fast.cuda.tuned.TABLES", tmp_path / "cuda")
    (kernels / "a.json").write_text("tuned")
    keep_tables(out)
    (kernels / "a.json").unlink()  # a fresh checkout
    keep_tables(out)
    assert (kernels / "a.json").read_text() == "tuned"
    (kernels / "a.json").write_text("tuned more")
    keep_tables(out)
    assert (out / "tables" / "a.json").read_text() == "tuned more"
