"""A job's finished batches on disk, so that a stopped job goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


_FIRST_LINE = b'{"job": '


class Journal:
    """Lines of JSON beside the output: what the job is, then one record a finished batch.

    A record counts once its line is whole; a line cut by a kill is dropped. Records come in order of their batch.
    """

    def __init__(self, out: Path, job: dict[str, Any], *, resume: bool) -> None:
        """Begin `job`, or with `resume` go on with it. Raises click.ClickException where either can't be."""
        self.path = out.with_name(out.name + ".partial")
        self.done = 0  # batches
        self.failed = 0  # images in them that could not be read
        self._file = self.path.open("a+b")
        _lock(self._file, self.path)
        self.is_new = not self.path.stat().st_size
        if not (self.is_new or resume):
            self._file.close()
            raise click.ClickException(
                f"{self.path} is left from a stopped run: add --resume to go on with it, or delete it"
            )
        if self.path.stat().st_size:
            self._recover(job)
        else:
            self._append({"job": job})

    def add(self, record: dict[str, Any]) -> None:
        """Append the next batch's record; it is on disk when this returns."""
        self._append({"batch": self.done, **record})
        self._count(record)

    def records(self) -> Iterator[dict[str, Any]]:
        """The records of all finished batches."""
        self._file.seek(0)  # of the file that is ours, whatever may lie at its path now
        next(self._file)
        yield from map(json.loads, self._file)

    def remove(self) -> None:
        if self.path.exists() and os.path.samestat(self.path.stat(), os.fstat(self._file.fileno())):
            self.path.unlink()
        self._file.close()

    def _recover(self, job: dict[str, Any]) -> None:
        whole = 0
        begun: dict[str, Any] | None = None
        with self.path.open("rb") as lines:
            for line in lines:
                record = _parse(line)
                if record is None:
                    break
                if whole == 0:
                    begun = record.get("job")
                elif record.get("batch") != self.done or not _is_record(record):
                    break
                else:
                    self._count(record)
                whole += len(line)
        if not isinstance(begun, dict):
            if not self._cut_short():
                self._file.close()
                raise click.ClickException(f"{self.path} is not a journal of this command; move it away")
            os.truncate(self.path, 0)
            self._append({"job": job})
            return
        changed = sorted(key for key in job if begun.get(key) != job[key])
        if changed:
            self._file.close()
            raise click.ClickException(
                f"{self.path} was begun with other {', '.join(changed)}: repeat the first command, or delete the file"
            )
        os.truncate(self.path, whole)

    def _count(self, record: dict[str, Any]) -> None:
        self.done += 1
        self.failed += len(record["failures"])

    def _cut_short(self) -> bool:
        """Whether the file is the beginning of a first line of ours, which a kill has cut."""
        with self.path.open("rb") as file:
            head = file.read(len(_FIRST_LINE))
            return _FIRST_LINE.startswith(head) and b"\n" not in file.read()

    def _append(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=True).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


@contextmanager
def claimed(folder: Path, job: dict[str, Any]) -> Iterator[None]:
    """`folder`, made where it isn't there, for one run of `job` at a time; its _job.json says what that is.

    What a killed run left half written, *.tmp, is removed. Raises click.ClickException where it has anything else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "_job.json"  # a name that readers of a folder of tables leave out
    if not path.exists() and any(folder.iterdir()):
        raise click.ClickException(f"{folder} has files of something else: name another folder")
    with path.open("a+b") as file:
        _lock(file, folder)
        file.seek(0)
        line = file.read()
        if not line:
            line = json.dumps(job).encode() + b"\n"
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        begun = _parse(line)
        if begun is None:
            raise click.ClickException(f"{path} is damaged: name another folder")
        changed = sorted(key for key in job if key not in begun or begun[key] != job[key])
        if changed:
            raise click.ClickException(
                f"{folder} was begun with other {', '.join(changed)}: repeat the first command, or name another folder"
            )
        for left in folder.glob("*.tmp"):
            left.unlink()
        yield


def _lock(file: BinaryIO, path: Path) -> None:
    """One run at a time; released when the process ends, however it ends. No lock where the system has none."""
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise click.ClickException(f"{path}: another run is writing it") from error


def _is_record(record: dict[str, Any]) -> bool:
    """Whether a batch's record holds what the output is made of."""
    rows, failures = record.get("rows"), record.get("failures")
    return (
        isinstance(rows, list)
        and all(isinstance(row, dict) and {"path", "predictions"} <= set(row) for row in rows)
        and isinstance(failures, list)
        and all(isinstance(failure, list) and len(failure) == 2 for failure in failures)
    )


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
