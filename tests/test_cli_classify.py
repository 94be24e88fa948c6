"""`mbv3fast classify` on real photographs: right files, and one-line errors."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from PIL import Image

import mbv3fast
from tests.cli import classify, read_csv, run


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


def test_worker_processes_give_the_same_file(weights: Path, photos: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        arguments = ("--weights", weights, "--batch-size", 4, "--workers", workers, "--device", "cpu")
        assert run("classify", photos, *arguments, "--out", tmp_path / f"{workers}.csv").exit_code == 0
    assert (tmp_path / "0.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


def test_weights_that_classify_nothing_are_refused(weights: Path, photos: Path, tmp_path: Path) -> None:
    mbv3fast.weights.save(mbv3fast.small(in_chans=5), tmp_path / "five.safetensors")
    assert "is for input of 5 channels" in classify(tmp_path / "five.safetensors", photos).output
    mbv3fast.weights.save(mbv3fast.small(num_classes=0), tmp_path / "embedding.safetensors")
    assert "has no classifier (num_classes=0)" in classify(tmp_path / "embedding.safetensors", photos).output
    model = mbv3fast.small(weights=weights)
    with torch.no_grad():
        model.classifier[0].weight.fill_(1e30)
        model.classifier[3].weight.fill_(1e30)
    mbv3fast.weights.save(model, tmp_path / "huge.safetensors")
    result = classify(tmp_path / "huge.safetensors", photos)
    assert (result.exit_code, "outputs are not finite" in result.output) == (1, True)


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
        (["{photos}", "--weights", "nothing"], "nothing', needs a state dict, a path, or one of DEFAULT"),
        (["{photos}", "--backend", "cuda"], "'cuda' can't serve"),
        (["{photos}", "--top", "0"], "--top"),
    ],
)
def test_bad_arguments_get_a_clear_error(weights: Path, photos: Path, arguments: list[str], message: str) -> None:
    given = ["--weights", str(weights), *[a.format(photos=photos) for a in arguments]]
    result = run("classify", *given)
    assert result.exit_code in (1, 2)
    assert message in result.output
    assert "Traceback" not in result.output


def test_labels_cannot_move_the_cursor(photos: Path, tmp_path: Path) -> None:
    model = mbv3fast.small(num_classes=2)
    model.labels = ("\x1b[31mred\nline", "\ud800half")
    mbv3fast.weights.save(model, tmp_path / "odd.safetensors")
    result = classify(tmp_path / "odd.safetensors", photos / "china.jpg")
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.output
    assert " [31mred line" in result.output
    assert classify(tmp_path / "odd.safetensors", photos / "china.jpg", "--out", tmp_path / "o.csv").exit_code == 0
