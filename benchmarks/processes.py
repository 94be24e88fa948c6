"""Commands with a limit of time, which leave nothing behind however they end."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

_GRACE = 10  # seconds between asking a command to end, upon which pytest still writes its rows, and forcing it
_ENDING = (signal.SIGINT, signal.SIGTERM)
_PDEATHSIG = 1  # PR_SET_PDEATHSIG of prctl(2)


class OverError(Exception):
    """The time was over."""


def run(commands: Sequence[Sequence[str]], log: TextIO, limit: float, at_once: int, root: Path) -> list[str]:
    """Run commands in the folder `root`, `at_once` of them side by side; what went wrong with each that failed.

    Their output goes to `log`. Raises OverError, with what went wrong, if not all have ended within `limit` seconds;
    those that run are then ended, with all that they started.
    """
    waiting, running, faults = list(commands), list[subprocess.Popen[bytes]](), list[str]()
    end = time.monotonic() + limit
    try:
        while (waiting or running) and time.monotonic() < end:
            while waiting and len(running) < at_once:
                command = waiting.pop(0)
                try:
                    running.append(_start(command, log, root))
                except OSError as error:
                    faults.append(f"{shown(command)}: {error.strerror}")
            time.sleep(0.05)
            for process in running:
                if process.poll() is not None:
                    _kill(process, signal.SIGKILL)  # what it left behind
            faults += [f"{shown(p.args)}: exit code {p.returncode}" for p in running if p.returncode]
            running = [process for process in running if process.returncode is None]
        faults += [f"{shown(process.args)}: no end in {limit:.0f} s" for process in running]
        faults += [f"{shown(command)}: had no turn" for command in waiting]
    finally:
        _stop(running)
    if running or waiting:
        raise OverError("; ".join(faults))
    return faults


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which ends with this process. Raises ValueError where another process holds it."""
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"{folder}: another process is at work there") from None
        yield


def shown(command: object) -> str:
    """A command without the folders of this machine."""
    assert isinstance(command, (list, tuple))
    return " ".join(os.path.basename(part) if os.path.isabs(part) else part for part in command)


def _start(command: Sequence[str], log: TextIO, root: Path) -> subprocess.Popen[bytes]:
    log.write(f"$ {shown(command)}\n")
    log.flush()
    path = os.environ.get("PYTHONPATH", "")
    with _uninterrupted():
        return subprocess.Popen(
            command,
            cwd=root,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_at_birth,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(filter(None, (str(root), path)))},
        )


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Signals that come meanwhile are heard at the end: Python swallows what is raised within the hooks of a fork."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda got, _: came.append(got)) for number in _ENDING}
    try:
        yield
    finally:
        for ending, handler in before.items():
            signal.signal(ending, handler)
        for number in came:
            signal.raise_signal(number)


def die_with_parent() -> None:
    """Let the kernel kill this process when its parent's end leaves it behind, on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGKILL)


def _at_birth() -> None:
    """A run that is killed leaves nothing on the GPU; a run in a shell's background, deaf to SIGINT, hears for it."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _kill(process: subprocess.Popen[bytes], number: int) -> None:
    """A command and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _stop(running: Sequence[subprocess.Popen[bytes]]) -> None:
    for number in (signal.SIGINT, signal.SIGKILL):
        end = time.monotonic() + _GRACE
        for process in running:
            _kill(process, number)
        for process in running:
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, end - time.monotonic()))
