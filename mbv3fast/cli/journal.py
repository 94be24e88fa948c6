"""A job's finished batches on disk, so that a stopped job goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click


class Journal:
    """Lines of JSON beside the output: what the job is, then one record a finished batch.

    A record counts once its line is whole; a line cut by a kill is dropped. Records come in order of their batch.
    """

    def __init__(self, out: Path, job: dict[str, Any], *, resume: bool) -> None:
        """Begin `job`, or with `resume` go on with it. Raises click.ClickException where either can't be."""
        self.path = out.with_name(out.name + ".partial")
        self.done = 0
        if self.path.exists() and not resume:
            raise click.ClickException(
                f"{self.path} is left from a stopped run: add --resume to go on with it, or delete it"
            )
        if self.path.exists():
            self._recover(job)
        else:
            self._append({"job": job})

    def add(self, record: dict[str, Any]) -> None:
        """Append the next batch's record; it is on disk when this returns."""
        self._append({"batch": self.done, **record})
        self.done += 1

    def records(self) -> Iterator[dict[str, Any]]:
        """The records of all finished batches."""
        with self.path.open(encoding="utf-8") as lines:
            next(lines)
            yield from map(json.loads, lines)

    def remove(self) -> None:
        self.path.unlink()

    def _recover(self, job: dict[str, Any]) -> None:
        whole = 0
        begun: dict[str, Any] | None = None
        with self.path.open("rb") as lines:
            for line in lines:
                record = _parse(line)
                if record is None:
                    break
                if begun is None:
                    begun = record.get("job")
                elif record.get("batch") != self.done:
                    break
                else:
                    self.done += 1
                whole += len(line)
        if begun is None:
            self.path.unlink()
            self._append({"job": job})
            return
        changed = sorted(key for key in job if begun.get(key) != job[key])
        if changed:
            raise click.ClickException(
                f"{self.path} was begun with other {', '.join(changed)}: repeat the first command, or delete the file"
            )
        os.truncate(self.path, whole)

    def _append(self, record: dict[str, Any]) -> None:
        with self.path.open("ab") as file:
            file.write(json.dumps(record, ensure_ascii=True).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) else None
