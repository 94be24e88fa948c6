"""Predictions to .csv, .jsonl or .parquet; a file appears whole or not at all."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from mbv3fast.atomic import replacing
from mbv3fast.cli.options import check_out

COLUMNS = ("path", "rank", "class_index", "label", "probability")
Row = dict[str, Any]


def writer_for(out: Path) -> Callable[[Path, Iterable[Row]], None]:
    """The writer that `out`'s suffix asks for. Raises click.BadParameter for another suffix or a missing library."""
    writers = {".csv": write_csv, ".jsonl": write_jsonl, ".parquet": write_parquet}
    check_out(out, writers)
    if out.suffix == ".parquet":
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            hint = "parquet needs pyarrow: pip install 'mbv3fast[parquet]'"
            raise click.BadParameter(hint, param_hint="--out") from error
    return writers[out.suffix]


def write_atomically(out: Path, rows: Iterable[Row]) -> None:
    """Write `rows` (each an image's path and its `predictions`) to `out` in the format of its suffix."""
    write = writer_for(out)
    with replacing(out) as temporary:
        write(temporary, rows)


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """One line a prediction."""
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for row in rows:
            table.writerows(flatten(row))


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """One line an image, its predictions as a list."""
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row) + "\n")


def write_parquet(path: Path, rows: Iterable[Row], group: int = 65536) -> None:
    """One row a prediction, in groups of about `group` rows."""
    import pyarrow as pa
    from pyarrow import parquet

    schema = parquet_schema()
    with parquet.ParquetWriter(path, schema) as file:
        pending: list[Row] = []
        for row in rows:
            pending += flatten({**row, "path": as_utf8(row["path"])})
            if len(pending) >= group:
                file.write_table(pa.Table.from_pylist(pending, schema))
                pending = []
        file.write_table(pa.Table.from_pylist(pending, schema))


def parquet_schema() -> Any:
    """The names and types of a parquet file's columns, a pyarrow.Schema."""
    import pyarrow as pa

    types = (pa.string(), pa.int32(), pa.int32(), pa.string(), pa.float32())
    return pa.schema(list(zip(COLUMNS, types, strict=True)))


def as_utf8(path: str) -> str:
    """A path as parquet's strings can hold it: a file name of other bytes keeps its readable part."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def flatten(row: Row) -> list[Row]:
    """A row for each of an image's predictions, best first."""
    return [{"path": row["path"], "rank": rank, **p} for rank, p in enumerate(row["predictions"], start=1)]
