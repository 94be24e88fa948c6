"""examples/ray_classify.py by Ray itself, on two CPUs: rows, what is done and what isn't, a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pyarrow as pa
import pytest
from pyarrow import parquet

import mbv3fast
from examples import ray_classify
from mbv3fast.cli.options import load_model
from tests.large_jobs import (
    COLUMNS,
    OPTIONS,
    Here,
    agree,
    check_folder,
    check_shards,
    classified,
    digits,
    image_files,
    parquet_files,
    rows,
    run,
)

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_USAGE_STATS_ENABLED": "0"}  # read as ray is imported


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
    for device in ("cpu", "cuda"):
        ray_classify.pipeline(ray, [{"part": 0}], {}, {"device": device}, 1).explain()
        plan = capsys.readouterr().out.rpartition("Physical Plan")[2]
        assert "ActorPoolMapOperator[MapBatches(Classifier)]\n+- TaskPoolMapOperator[MapBatches(decode)]" in plan
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
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_a_killed_job_goes_on(folder: Path) -> None:
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
