"""Images that can't be read: reported, skipped, and the rest goes on."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli import classify, read_csv


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


def test_a_closed_folder_is_reported_and_the_rest_goes_on(
    weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused by a stand-in, since root may open anything."""
    scandir = os.scandir

    def guarded(path: str) -> Any:
        if Path(path).name == "more":
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    out = tmp_path / "o.csv"
    result = classify(weights, photos, "--top", 1, "--out", out)
    assert result.exit_code == 3
    assert f"skipped {photos / 'more'}: a folder that can't be opened" in result.output
    assert len(read_csv(out)) == 10


def test_an_image_that_would_become_huge_is_skipped(weights: Path, photos: Path, tmp_path: Path) -> None:
    Image.new("L", (600_000, 1)).save(tmp_path / "line.png")
    result = classify(weights, tmp_path / "line.png", photos / "china.jpg", "--top", 1)
    assert result.exit_code == 3
    assert "line.png: ValueError: image: got 600000x1 pixels, too long and thin" in result.output


def test_a_large_image_gets_no_warning(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (300, 300)).save(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert classify(weights, tmp_path / "large.png", "--top", 1).exit_code == 0


def test_a_pipe_is_skipped_not_waited_for(weights: Path, photos: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    result = classify(weights, tmp_path / "pipe.png", photos / "china.jpg", "--top", 1)
    assert result.exit_code == 3
    assert "pipe.png: no regular file" in result.output
