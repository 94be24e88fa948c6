"""`mbv3fast classify` stopped and resumed: nothing lost, nothing doubled."""

from __future__ import annotations

import fcntl
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from mbv3fast.cli.journal import Journal
from tests.cli import classify, read_csv

# Each batch is slowed down, so that a signal surely lands between the first and the last; and Ctrl-C counts, which a
# shell in the background makes its children ignore.
SLOW = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "import time, mbv3fast.cli.classify as c; f = c.predictions; "
    "c.predictions = lambda *a: (time.sleep(0.2), f(*a))[1]; import mbv3fast.cli; mbv3fast.cli.main()"
)


def stop_midway(number: signal.Signals, arguments: list[str], partial: Path) -> subprocess.CompletedProcess[str]:
    """Send a signal to a command once its journal has three batches."""
    process = subprocess.Popen([sys.executable, "-c", SLOW, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 60
        while not partial.exists() or partial.read_bytes().count(b"\n") < 4:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    return subprocess.CompletedProcess(arguments, process.returncode, "", errors)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 1, marks=pytest.mark.slow)]
)
def test_a_stopped_run_says_how_to_go_on(
    number: signal.Signals, code: int, weights: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "o.csv"
    arguments = ["classify", str(photos), "--weights", str(weights), "--batch-size", "1", "--workers", "1"]
    stopped = stop_midway(number, [*arguments, "--device", "cpu", "--out", str(out)], tmp_path / "o.csv.partial")
    assert stopped.returncode == code
    assert "o.csv.partial holds what is done: go on with the same command and --resume" in stopped.stderr
    assert "Traceback" not in stopped.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["o.csv.partial"]


def test_resume_of_nothing_says_so(weights: Path, photos: Path, tmp_path: Path) -> None:
    result = classify(weights, photos / "china.jpg", "--out", tmp_path / "o.csv", "--resume")
    assert result.exit_code == 0
    assert "no finished batches to go on from: starting with the first image" in result.output


def test_killed_run_resumes_to_an_equal_file(weights: Path, photos: Path, tmp_path: Path) -> None:
    out, partial = tmp_path / "o.csv", tmp_path / "o.csv.partial"
    arguments = ["classify", str(photos), "--weights", str(weights), "--batch-size", "1", "--workers", "0"]
    arguments += ["--device", "cpu", "--out"]
    stop_midway(signal.SIGKILL, [*arguments, str(out)], partial)
    assert not out.exists()
    done = partial.read_bytes().count(b"\n") - 1
    assert 3 <= done < 12
    finished = partial.read_bytes().splitlines(keepends=True)[: done + 1]
    label = json.loads(finished[1])["rows"][0]["predictions"][0]["label"]
    finished[1] = finished[1].replace(json.dumps(label).encode(), b'"from the journal"', 1)
    partial.write_bytes(b"".join(finished) + b'{"batch": ')  # as if the kill had cut a line
    command = [sys.executable, "-m", "mbv3fast", *arguments]  # processes alike: threads decide the last bits
    refused = subprocess.run([*command, out], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "add --resume to go on with it" in refused.stderr
    subprocess.run([*command, out, "--resume"], check=True)
    assert not partial.exists()
    subprocess.run([*command, tmp_path / "once.csv"], check=True)
    resumed, whole = read_csv(out), read_csv(tmp_path / "once.csv")
    assert resumed[0]["label"] == "from the journal", "what was done was done again"
    assert [{**resumed[0], "label": label}, *resumed[1:]] == whole


def test_a_second_run_is_told_of_the_first(weights: Path, photos: Path, tmp_path: Path) -> None:
    """Not that a stopped one is left, which it could delete."""
    with (tmp_path / "o.csv.partial").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(b'{"job": {}}\n')
        file.flush()
        result = classify(weights, photos, "--out", tmp_path / "o.csv")
    assert result.exit_code == 1
    assert "another run is writing it" in result.output


def test_a_journal_that_is_taken_away(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run still writes all that it has done, and leaves another's journal alone."""
    partial, add = tmp_path / "o.csv.partial", Journal.add

    def taken(self: Journal, record: dict[str, Any]) -> None:
        add(self, record)
        partial.unlink(missing_ok=True)
        partial.write_text("another's")

    monkeypatch.setattr(Journal, "add", taken)
    result = classify(weights, photos, "--out", tmp_path / "o.csv", "--top", 1, "--batch-size", 4)
    assert result.exit_code == 0
    assert len(read_csv(tmp_path / "o.csv")) == 12
    assert partial.read_text() == "another's"


def test_a_killed_runs_workers_end_with_it(weights: Path, photos: Path, tmp_path: Path) -> None:
    """Or they would hold its lock, and --resume be refused."""
    out = tmp_path / "o.csv"
    arguments = ["classify", str(photos), "--weights", str(weights), "--batch-size", "1", "--workers", "2"]
    arguments += ["--device", "cpu", "--out", str(out)]
    stop_midway(signal.SIGKILL, arguments, tmp_path / "o.csv.partial")
    subprocess.run([sys.executable, "-m", "mbv3fast", *arguments, "--resume"], check=True)
    assert len({row["path"] for row in read_csv(out)}) == 12


def test_resume_of_what_is_done_is_refused(weights: Path, photos: Path, tmp_path: Path) -> None:
    """Rather than done again; a run that was stopped before its first batch is not done."""
    out, image = tmp_path / "o.csv", photos / "china.jpg"
    done = classify(weights, image, "--out", out)
    assert done.stderr == f"1 images in {out}\n"
    again = classify(weights, image, "--out", out, "--resume")
    assert again.exit_code == 1
    assert again.stderr.endswith(f"{out} is there, and no stopped run: leave out --resume to begin anew\n")
    assert [path.name for path in tmp_path.iterdir()] == ["o.csv"]
    (tmp_path / "o.csv.partial").write_text('{"jo')
    assert classify(weights, image, "--out", out, "--resume").exit_code == 0


def test_resume_refuses_another_job(weights: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    (tmp_path / "o.csv.partial").write_text('{"job": {"top": 5}}\n')
    result = classify(weights, photos, "--out", out, "--top", 2, "--resume")
    assert result.exit_code == 1
    assert "was begun with other batch size, device, dtype, images, top, weights" in result.output
    assert not out.exists()


@pytest.mark.parametrize(
    "content", ['{"important": "data"}\n', "[1]\n", '{"job": "x"}\n', "[" * 100_000 + "\n", "notes", "my\nnotes"]
)
def test_resume_leaves_a_file_that_is_no_journal(content: str, weights: Path, photos: Path, tmp_path: Path) -> None:
    partial = tmp_path / "o.csv.partial"
    partial.write_text(content)
    result = classify(weights, photos, "--out", tmp_path / "o.csv", "--resume")
    assert result.exit_code == 1
    assert "is not a journal of this command" in result.output
    assert partial.read_text() == content


def test_two_runs_never_share_a_journal(weights: Path, photos: Path, tmp_path: Path) -> None:
    with (tmp_path / "o.csv.partial").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = classify(weights, photos, "--out", tmp_path / "o.csv", "--resume")
    assert result.exit_code == 1
    assert "another run is writing it" in result.output


@pytest.mark.parametrize("head", ["", '{"jo', '{"job": {"images": "12'])
def test_resume_begins_anew_where_the_first_line_was_cut(
    head: str, weights: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "o.csv.partial").write_text(head)
    result = classify(weights, photos / "china.jpg", "--out", tmp_path / "o.csv", "--resume")
    assert result.exit_code == 0, result.output
    assert (tmp_path / "o.csv").exists()
