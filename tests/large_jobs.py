"""Jobs of examples/ray_classify.py: their input, what stands in for Ray, what `mbv3fast classify` says of the same."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pyarrow import parquet
from sklearn.datasets import load_digits

from examples import ray_classify
from tests import cli

OPTIONS = ("--weights", "digits", "--device", "cpu", "--top", "2", "--batch-size", "4", "--part", "8")
COLUMNS = ("--columns", "image.bytes", "image.path")


def digits(count: int) -> Iterator[tuple[str, bytes]]:
    """Handwritten digits as PNG files of memory, with names."""
    for i, image in enumerate(load_digits().images[:count]):
        file = io.BytesIO()
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(file, "png")
        yield f"{i:03d}.png", file.getvalue()


def image_files() -> Path:
    """images/ in the current folder: 22 files in three parts, of which one is damaged."""
    images = Path("images")
    (images / "more").mkdir(parents=True)
    for i, (name, content) in enumerate(digits(21)):
        (images / ("more" if i % 5 == 0 else "") / name).write_bytes(content)
    (images / "005a.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return images


def parquet_files() -> Path:
    """shards/ in the current folder: two files of 11 images in row groups of 3; one is damaged, another one null."""
    folder = Path("shards")
    folder.mkdir()
    rows: list[dict[str, Any]] = [{"path": name, "bytes": content} for name, content in digits(22)]
    rows[14]["bytes"], rows[17]["bytes"] = b"nonsense", None
    for i, part in enumerate((rows[:11], rows[11:])):
        table = pa.table({"label": list(range(11)), "image": part})
        parquet.write_table(table, folder / f"{i}.parquet", row_group_size=3)
    return folder


class Here:
    """Stands in for Ray: everything in this process, one after the other."""

    exceptions = SimpleNamespace(RayError=ZeroDivisionError)

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts: list[int] = []
        monkeypatch.setattr(ray_classify, "start_ray", lambda _: self)
        monkeypatch.setattr(ray_classify, "pipeline", self.pipeline)
        monkeypatch.setitem(sys.modules, "ray", self)

    def put(self, value: Any) -> Any:
        return value

    get = put

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def pipeline(self, _: Any, parts: list[Any], reading: dict[str, Any], model: dict[str, Any], actors: int) -> Any:
        assert actors == 1
        self.parts = [part["part"] for part in parts]
        batches = ray_classify.decode(pa.Table.from_pylist(parts), **reading)
        return SimpleNamespace(iter_batches=lambda **_: map(ray_classify.Classifier(**model), batches))


def run(source: Path, *more: str, out: str = "out") -> Result:
    return CliRunner().invoke(ray_classify.main, [str(source), *OPTIONS, "--out", out, *more])


def rows(out: str = "out") -> list[dict[str, Any]]:
    """All rows that a job wrote, in the order of its input; read as whoever reads a folder of parquet does."""
    return parquet.read_table(out).to_pylist()


def classified(images: Path) -> list[dict[str, Any]]:
    """The rows that `mbv3fast classify` writes for the same images."""
    options = ("--top", 2, "--batch-size", 4, "--out", "once.parquet")
    assert cli.classify(Path("digits"), images, *options).exit_code in (0, 3)
    return parquet.read_table("once.parquet").to_pylist()


def agree(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The rows are equal, probabilities but for the last of their six digits; what failed is left out."""
    good = [row for row in found if row["error"] is None]
    assert len(good) == len(expected) >= 40
    for row, other in zip(good, expected, strict=True):
        assert row["probability"] == pytest.approx(other["probability"], abs=2e-6)
        assert {**row, "probability": 0} == {**other, "probability": 0, "error": None}


def check_folder(result: Result, folder: Path, out: str = "out") -> None:
    """Three parts, the rows of `mbv3fast classify`, one damaged image."""
    assert result.exit_code == 3, result.output
    assert "skipped images/005a.png: UnidentifiedImageError" in result.output
    assert "1 of 22 images could not be read" in result.output
    assert sorted(os.listdir(out)) == ["_job.json", *(f"part-00000{i}.parquet" for i in range(3))]
    agree(rows(out), classified(folder))
    failed = [row for row in rows(out) if row["error"] is not None]
    assert [(row["path"], row["rank"], row["label"]) for row in failed] == [("images/005a.png", None, None)]
    assert "cannot identify image file" in failed[0]["error"]


def check_shards(result: Result, shards: Path) -> None:
    """As above, the images being files for `mbv3fast classify`, and rows of parquet files here."""
    assert result.exit_code == 3, result.output
    assert "2 of 22 images could not be read" in result.output
    images = shards.with_name("files")
    images.mkdir()
    failed = {row["path"]: row["error"] for row in rows("parquet") if row["error"] is not None}
    for name, content in digits(22):
        if name not in failed:
            (images / name).write_bytes(content)
    agree(rows("parquet"), [{**row, "path": Path(row["path"]).name} for row in classified(images)])
    unknown = "UnidentifiedImageError: cannot identify image file '014.png'"
    assert failed == {"014.png": unknown, "017.png": "NoneType, not bytes"}
