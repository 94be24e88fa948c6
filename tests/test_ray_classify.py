"""examples/ray_classify.py: rows as `mbv3fast classify` has them, of folders and parquet, stopped and gone on with."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from PIL import Image
from pyarrow import parquet
from sklearn.datasets import load_digits

import mbv3fast
from examples import ray_classify
from mbv3fast.cli.journal import claimed
from mbv3fast.cli.options import load_model
from tests import cli

OPTIONS = ("--weights", "digits", "--device", "cpu", "--top", "2", "--batch-size", "4", "--part", "8")
COLUMNS = ("--columns", "image.bytes", "image.path")
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # read as ray is imported


def digits(count: int) -> Iterator[tuple[str, bytes]]:
    """Handwritten digits as PNG files of memory, with names."""
    for i, image in enumerate(load_digits().images[:count]):
        file = io.BytesIO()
        Image.fromarray((image * 255 / 16).round().astype(np.uint8)).save(file, "png")
        yield f"{i:03d}.png", file.getvalue()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ "images", 22 files in three parts, of which one is damaged; the current folder is the one above."""
    monkeypatch.chdir(tmp_path)
    images = Path("images")
    (images / "more").mkdir(parents=True)
    for i, (name, content) in enumerate(digits(21)):
        (images / ("more" if i % 5 == 0 else "") / name).write_bytes(content)
    (images / "005a.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return images


@pytest.fixture
def shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """ "shards", two parquet files of 11 images in row groups of 3; in the second one is damaged, and one is null."""
    monkeypatch.chdir(tmp_path)
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


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Here:
    return Here(monkeypatch)


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
        assert run(folder).exit_code == 1


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
    assert "out was begun with other" in run(folder).output


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


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """Ray on two CPUs, started before the command would."""
    for name, value in LOOPBACK.items():
        monkeypatch.setenv(name, value)
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    ray.init("local", num_cpus=2, object_store_memory=128 * 2**20, include_dashboard=False, logging_level="error")
    assert [node["NodeManagerAddress"] for node in ray.nodes()] == ["127.0.0.1"]
    yield ray
    ray.shutdown()


def test_by_ray(request: pytest.FixtureRequest, folder: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one test, since Ray takes seconds to start: a folder of which a part is there, then parquet."""
    with pytest.MonkeyPatch.context() as patch:
        Here(patch)
        run(folder)
    ray = request.getfixturevalue("ray")
    ray_classify.pipeline(ray, [{"part": 0}], {}, {"device": "cpu"}, 1).explain()
    plan = capsys.readouterr().out.rpartition("Physical Plan")[2]
    assert "ActorPoolMapOperator[MapBatches(Classifier)]\n+- TaskPoolMapOperator[MapBatches(decode)]" in plan, "fused"
    kept = parquet.read_table("out/part-000001.parquet")
    marked = kept.set_column(kept.schema.get_field_index("label"), "label", pa.array(["kept"] * len(kept)))
    parquet.write_table(marked, "out/part-000001.parquet")
    for part in (0, 2):
        Path(f"out/part-00000{part}.parquet").unlink()
    result = run(folder)
    assert "1 of 3 parts are there already" in result.output
    assert parquet.read_table("out/part-000001.parquet").equals(marked), "what was done was done again"
    parquet.write_table(kept, "out/part-000001.parquet")
    check_folder(result, folder)
    check_shards(run(shards, *COLUMNS, out="parquet"), shards)


@pytest.mark.slow
@pytest.mark.usefixtures("ray")
def test_what_an_actor_raises_is_one_line(folder: Path) -> None:
    model = load_model("digits", "small", None, "cpu", "float32", "torch")
    model.classifier[3].weight.data.fill_(1e38)  # finite itself, but sums of it are not
    mbv3fast.weights.save(model, "damaged.safetensors")
    result = run(folder, "--weights", "damaged.safetensors")
    assert result.exit_code == 1
    assert "the model's outputs are not finite" in result.output.splitlines()[-1]
    assert os.listdir("out") == ["_job.json"]


@pytest.mark.slow
def test_a_killed_job_goes_on(folder: Path) -> None:
    pytest.importorskip("ray.data")
    for name, content in digits(64):
        (folder / name).write_bytes(content)
    command = [sys.executable, ray_classify.__file__, str(folder), *OPTIONS, "--part", "2", "--out", "out"]
    process = subprocess.Popen(command)
    try:
        deadline = time.monotonic() + 120
        while len(list(Path("out").glob("*.parquet"))) < 2:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = {path.name: path.stat().st_mtime_ns for path in Path("out").glob("*.parquet")}
    assert 2 <= len(done) < 34
    (Path("out") / "part-000033.parquet.1-1.tmp").write_bytes(b"half")
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 3, result.stderr
    assert f"{len(done)} of 35 parts are there already" in result.stderr
    assert {name: (Path("out") / name).stat().st_mtime_ns for name in done} == done
    assert len(os.listdir("out")) == 36
    agree(rows(), classified(folder))
