"""`mbv3fast classify` and `embed` on real photographs: right files, nothing lost, nothing doubled."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from sklearn.datasets import load_sample_images

import mbv3fast
from mbv3fast.cli import main


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A Small whose predictions differ from image to image: calibrated on the photographs, logits centred."""
    torch.manual_seed(0)
    model = mbv3fast.small(se_divisor=8, bn_momentum=1.0)
    with torch.no_grad():
        x = torch.stack([model.transforms()(Image.open(path)) for path in sorted(photos.glob("*.*g"))])
        model(x)
        model.classifier[3].weight.mul_(100)
        model.classifier[3].bias.sub_(model.eval()(x).mean(0))
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    mbv3fast.weights.save(model, path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's two photographs and crops of them, twelve in all, one in a subfolder."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "more").mkdir()
    for name, pixels in zip(("china", "flower"), load_sample_images().images, strict=True):
        image = Image.fromarray(pixels)
        image.save(folder / f"{name}.jpg")
        for i in range(5):
            target = folder / "more" if i == 0 else folder
            image.crop((60 * i, 20 * i, 60 * i + 300, 20 * i + 250)).save(target / f"{name}-{i}.png")
    return folder


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def classify(weights: Path, *arguments: object) -> Result:
    return run("classify", *arguments, "--weights", weights, "--workers", 0, "--device", "cpu")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def expected(weights: Path, path: Path, top: int) -> list[tuple[int, float]]:
    model = mbv3fast.small(weights=weights).eval()
    with torch.inference_mode():
        logits = model.reference_forward(model.transforms()(Image.open(path))[None])[0]
    best = logits.softmax(0).topk(top)
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))


def test_csv_holds_each_photo_with_its_classes(weights: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "labels.csv"
    result = classify(weights, photos / "china.jpg", photos / "flower.jpg", "--top", 3, "--out", out)
    assert result.exit_code == 0, result.output
    rows = read_csv(out)
    assert [row["path"] for row in rows] == [str(photos / "china.jpg")] * 3 + [str(photos / "flower.jpg")] * 3
    for name, part in (("china.jpg", rows[:3]), ("flower.jpg", rows[3:])):
        for rank, (row, (index, probability)) in enumerate(
            zip(part, expected(weights, photos / name, 3), strict=True), start=1
        ):
            assert (int(row["rank"]), int(row["class_index"])) == (rank, index)
            assert float(row["probability"]) == pytest.approx(probability, abs=1e-5)
            assert row["label"] == mbv3fast.assets.imagenet_labels()[index]
    assert rows[0]["class_index"] != rows[3]["class_index"]
    assert os.listdir(tmp_path) == ["labels.csv"]


def test_formats_agree(weights: Path, photos: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "jsonl", "parquet"):
        assert classify(weights, photos, "--top", 2, "--out", tmp_path / f"o.{suffix}").exit_code == 0
    rows = [(r["path"], int(r["class_index"]), float(r["probability"])) for r in read_csv(tmp_path / "o.csv")]
    assert len(rows) == 24
    lines = [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]
    nested = [(r["path"], p["class_index"], p["probability"]) for r in lines for p in r["predictions"]]
    assert nested == rows
    parquet = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "o.parquet").to_pylist()
    assert [(r["path"], r["class_index"], round(r["probability"], 6)) for r in parquet] == rows


def test_folders_patterns_and_repeats_name_each_image_once(weights: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    result = classify(weights, photos / "flower.jpg", f"{photos}/**/*.png", photos, "--top", 1, "--out", out)
    assert result.exit_code == 0
    paths = [row["path"] for row in read_csv(out)]
    assert len(paths) == len(set(paths)) == 12
    assert paths[0] == str(photos / "flower.jpg")


def test_unreadable_image_is_reported_and_skipped(weights: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    whole = (photos / "china.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    out = tmp_path / "o.csv"
    result = classify(weights, tmp_path / "bad.jpg", photos / "china.jpg", tmp_path / "cut.jpg", "--out", out)
    assert result.exit_code == 3
    assert "skipped" in result.output
    assert "bad.jpg: UnidentifiedImageError" in result.output
    assert "2 of 3 images could not be read" in result.output
    assert {row["path"] for row in read_csv(out)} == {str(photos / "china.jpg")}


def test_a_pipe_is_skipped_not_waited_for(weights: Path, photos: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    result = classify(weights, tmp_path / "pipe.png", photos / "china.jpg", "--top", 1)
    assert result.exit_code == 3
    assert "pipe.png: no regular file" in result.output


def test_worker_processes_give_the_same_file(weights: Path, photos: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        arguments = ("--weights", weights, "--batch-size", 4, "--workers", workers, "--device", "cpu")
        assert run("classify", photos, *arguments, "--out", tmp_path / f"{workers}.csv").exit_code == 0
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


def test_killed_run_resumes_to_an_equal_file(weights: Path, photos: Path, tmp_path: Path) -> None:
    out, partial = tmp_path / "o.csv", tmp_path / "o.csv.partial"
    arguments = ["classify", str(photos), "--weights", str(weights), "--batch-size", "1", "--workers", "0"]
    arguments += ["--device", "cpu", "--out"]
    # Each batch is slowed down, so that the kill surely lands between the first and the last.
    slow = (
        "import time, mbv3fast.cli.classify as c; f = c.predictions; "
        "c.predictions = lambda *a: (time.sleep(0.2), f(*a))[1]; import mbv3fast.cli; mbv3fast.cli.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", slow, *arguments, str(out)])
    try:
        deadline = time.monotonic() + 60
        while not partial.exists() or partial.read_bytes().count(b"\n") < 4:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not out.exists()
    done = partial.read_bytes().count(b"\n") - 1
    assert 3 <= done < 12
    with partial.open("ab") as file:
        file.write(b'{"batch": ')  # as if the kill had cut a line
    command = [sys.executable, "-m", "mbv3fast", *arguments]  # processes alike: threads decide the last bits
    refused = subprocess.run([*command, out], capture_output=True, text=True)
    assert refused.returncode == 1
    assert "add --resume to go on with it" in refused.stderr
    subprocess.run([*command, out, "--resume"], check=True)
    assert not partial.exists()
    subprocess.run([*command, tmp_path / "once.csv"], check=True)
    assert out.read_bytes() == (tmp_path / "once.csv").read_bytes()


def test_resume_refuses_another_job(weights: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.csv"
    (tmp_path / "o.csv.partial").write_text('{"job": {"top": 5}}\n')
    result = classify(weights, photos, "--out", out, "--top", 2, "--resume")
    assert result.exit_code == 1
    assert "was begun with other batch size, device, dtype, images, top, weights" in result.output
    assert not out.exists()


@pytest.mark.parametrize("content", ['{"important": "data"}\n', "[1]\n", '{"job": "x"}\n', "[" * 100_000 + "\n"])
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


def test_weights_that_classify_nothing_are_refused(weights: Path, photos: Path, tmp_path: Path) -> None:
    mbv3fast.weights.save(mbv3fast.small(num_classes=0), tmp_path / "embedding.safetensors")
    assert "has no classifier (num_classes=0)" in classify(tmp_path / "embedding.safetensors", photos).output
    model = mbv3fast.small(weights=weights)
    with torch.no_grad():
        model.classifier[3].weight.fill_(1e38)
    mbv3fast.weights.save(model, tmp_path / "huge.safetensors")
    result = classify(tmp_path / "huge.safetensors", photos)
    assert (result.exit_code, "outputs are not finite" in result.output) == (1, True)


def test_embed_names_each_row_in_one_line(weights: Path, photos: Path, tmp_path: Path) -> None:
    odd = tmp_path / "new\nline.png"
    odd.write_bytes((photos / "china-1.png").read_bytes())
    arguments = ("--weights", weights, "--workers", 0, "--device", "cpu", "--out", tmp_path / "f.npy")
    assert run("embed", odd, photos / "china.jpg", *arguments).exit_code == 0
    lines = (tmp_path / "f.paths.txt").read_text().splitlines()
    assert [Path(line).name for line in lines] == ["new\\nline.png", "china.jpg"]


def test_embed_writes_the_embeddings(weights: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    out = tmp_path / "features.npy"
    arguments = ("--weights", weights, "--batch-size", 5, "--workers", 0, "--device", "cpu", "--out", out)
    result = run("embed", tmp_path / "bad.jpg", photos, *arguments)
    assert result.exit_code == 3
    paths = (tmp_path / "features.paths.txt").read_text().splitlines()
    features = np.load(out)
    assert features.shape == (12, 1024)
    assert features.dtype == np.float32
    model = mbv3fast.small(weights=weights, num_classes=0).eval()
    with torch.inference_mode():
        for row, path in list(zip(features, paths, strict=True))[::5]:
            wanted = model.reference_forward(model.transforms()(Image.open(path))[None])[0]
            np.testing.assert_allclose(row, wanted, rtol=1e-4, atol=1e-5)
    assert sorted(os.listdir(tmp_path)) == ["bad.jpg", "features.npy", "features.paths.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.jpg"], "nowhere.jpg: no such image"),
        (["{photos}", "--out", "o.txt"], "needs the suffix .csv, .jsonl, .parquet"),
        (["{photos}", "--out", "nowhere/o.csv"], "its folder does not exist"),
        (["{photos}", "--resume"], "--resume needs --out"),
        (["{photos}", "--device", "cuda:9"], "--device"),
        (["{photos}", "--device", "toaster"], "--device"),
        (["{photos}", "--weights", "nowhere.safetensors"], "nowhere.safetensors is not a file"),
        (["{photos}", "--backend", "triton"], "no kernels in this version"),
        (["{photos}", "--top", "0"], "--top"),
    ],
)
def test_bad_arguments_get_a_clear_error(weights: Path, photos: Path, arguments: list[str], message: str) -> None:
    given = ["--weights", str(weights), *[a.format(photos=photos) for a in arguments]]
    result = run("classify", *given)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output
