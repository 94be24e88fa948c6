"""examples/ray_classify.py without Ray: parts, rows, errors; stopped jobs, other jobs, options that are refused."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

import mbv3fast
from examples import ray_classify
from mbv3fast.cli.journal import claimed
from mbv3fast.cli.options import load_model
from tests.large_jobs import (
    COLUMNS,
    Here,
    agree,
    check_folder,
    check_shards,
    classified,
    image_files,
    parquet_files,
    rows,
    run,
)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder() -> Path:
    return image_files()


@pytest.fixture
def shards() -> Path:
    return parquet_files()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(monkeypatch)


@pytest.mark.usefixtures("here")
def test_a_folder(folder: Path) -> None:
    check_folder(run(folder), folder)


@pytest.mark.usefixtures("here")
def test_parquet_by_row_groups(shards: Path) -> None:
    check_shards(run(shards, *COLUMNS, out="parquet"), shards)
    assert [parquet.read_metadata(path).num_rows for path in sorted(Path("parquet").glob("*.parquet"))] == [
        18,
        4,
        16,
        4,
    ]


@pytest.mark.usefixtures("here")
def test_a_damaged_row_group_is_rows_with_errors(shards: Path) -> None:
    path = shards / "0.parquet"
    column = parquet.read_metadata(path).row_group(1).column(1)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset : column.data_page_offset + 200] = bytes(200)
    path.write_bytes(content)
    result = run(shards, *COLUMNS, out="parquet")
    assert result.exit_code == 3, result.output
    found = [row for row in rows("parquet") if row["path"] == "shards/0.parquet"]
    assert 3 <= len(found) <= 9
    assert all(row["error"].startswith("OSError: ") for row in found)
    assert len({row["path"] for row in rows("parquet")} - {"shards/0.parquet"}) == 22 - len(found)


@pytest.mark.usefixtures("here")
def test_names_that_are_no_utf8(folder: Path) -> None:
    name = os.fsdecode(b"images/caf\xe9.png")
    (folder / "001.png").rename(name)
    assert "1 of 22" in run(folder).output
    agree(rows(), classified(folder))
    assert "images/caf\ufffd.png" in [row["path"] for row in rows()]


def stopped(folder: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is interrupted once `after` parts are written, and has half written another."""
    replacing = ray_classify.replacing

    def interrupted(path: Path) -> Any:
        if len(list(path.parent.glob("*.parquet"))) == after:
            path.with_name(path.name + ".1-1.tmp").write_bytes(b"half")
            raise KeyboardInterrupt
        return replacing(path)

    with monkeypatch.context() as patch:
        patch.setattr(ray_classify, "replacing", interrupted)
        result = run(folder)
    assert result.exit_code == 1
    assert "stopped; out holds the parts that are done: go on with the same command" in result.stderr


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_stopped_job_goes_on(after: int, here: Here, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(folder, after, monkeypatch)
    assert len(os.listdir("out")) == after + 2
    result = run(folder)
    assert here.parts == [0, 1, 2][after:]
    assert (f"{after} of 3 parts are there already" in result.output) == (after > 0)
    assert "1 of 22 images could not be read" in result.output
    run(folder, out="whole")
    assert rows() == rows("whole")
    assert sorted(os.listdir("out")) == sorted(os.listdir("whole"))


@pytest.mark.usefixtures("here")
def test_a_damaged_part_is_named(folder: Path) -> None:
    assert "21 images in out" in run(folder).stderr
    Path("out/part-000001.parquet").write_bytes(b"PAR1")
    result = run(folder)
    assert result.exit_code == 1
    assert re.search(r"Error: out/part-000001\.parquet is damaged \(.*\): delete it, and repeat", result.stderr)


def test_a_finished_job_is_left_alone(here: Here, folder: Path) -> None:
    run(folder)
    here.parts = []
    result = run(folder)
    assert result.exit_code == 3
    assert "3 of 3 parts are there already" in result.output
    assert here.parts == []


@pytest.mark.usefixtures("here")
def test_another_job_is_refused(folder: Path) -> None:
    run(folder)
    before = rows()
    Image.new("L", (8, 8)).save("more.png")
    model = load_model("digits", "small", None, "cpu", "float32", "torch")
    model.labels = tuple("abcdefghij")
    mbv3fast.weights.save(model, "other.safetensors")
    for options, changed in (
        (["--top", "3"], "top"),
        (["--batch-size", "8", "--dtype", "float16"], "batch_size, dtype"),
        (["--part", "9"], "images or part"),
        (["more.png"], "images or part"),
        (["--weights", "other.safetensors"], "weights"),
    ):
        result = run(folder, *options)
        assert result.exit_code == 1
        assert f"out was begun with other {changed}: repeat the first command, or name another folder" in result.output
        assert rows() == before


@pytest.mark.usefixtures("here")
def test_a_folder_of_something_else_is_refused(folder: Path) -> None:
    result = run(folder, out="images")
    assert result.exit_code == 1
    assert "images has files of something else: name another folder" in result.output
    assert not Path("images/_job.json").exists()
    Path("out").mkdir()
    Path("out/_job.json").write_text("{", encoding="utf-8")
    assert "out/_job.json is damaged: name another folder" in run(folder).output


@pytest.mark.usefixtures("here")
def test_one_run_at_a_time(folder: Path) -> None:
    with claimed(Path("out"), {}):
        assert "out: another run is writing it" in run(folder).output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["images", "--device", "cuda:1"], "'cuda:1': needs auto, cpu or cuda"),
        (["nowhere", *COLUMNS], "nowhere: no such parquet file"),
        (["images/001.png", *COLUMNS], "images/001.png: "),
        (["empty.parquet", "--columns", "image", "path"], "no rows in empty.parquet"),
        (["empty.parquet", "--columns", "image", "label"], "empty.parquet has no 'label', it has image, path"),
    ],
)
@pytest.mark.usefixtures("here", "folder")
def test_what_can_not_be_is_refused(arguments: list[str], words: str) -> None:
    parquet.write_table(
        pa.table({"image": pa.array([], pa.binary()), "path": pa.array([], pa.string())}), "empty.parquet"
    )
    result = run(Path(arguments[0]), *arguments[1:])
    assert result.exit_code in (1, 2)
    assert words in result.output
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("resources", "device", "actors", "expected"),
    [
        ({"CPU": 8.0}, "auto", None, ("cpu", 4)),
        ({"CPU": 2.0}, "cpu", None, ("cpu", 1)),
        ({"CPU": 16.0, "GPU": 2.0}, "auto", None, ("cuda", 2)),
        ({"CPU": 16.0, "GPU": 2.0}, "cpu", 3, ("cpu", 3)),
        ({"CPU": 1.0}, "auto", None, "1 need a CPU each, and decoding another one; there are 1"),
        ({"CPU": 4.0}, "cuda", None, "1 on cuda need a GPU each, there are 0"),
        ({"CPU": 4.0, "GPU": 2.0}, "auto", 3, "3 on cuda need a GPU each, there are 2"),
        ({"CPU": 2.0, "GPU": 2.0}, "auto", None, "2 need a CPU each, and decoding another one; there are 2"),
    ],
)
def test_the_pool_of_actors(
    resources: dict[str, float], device: str, actors: int | None, expected: tuple[str, int] | str
) -> None:
    if isinstance(expected, tuple):
        assert ray_classify.pool(resources, device, actors) == expected
    else:
        with pytest.raises(click.ClickException) as caught:
            ray_classify.pool(resources, device, actors)
        assert expected in caught.value.message
