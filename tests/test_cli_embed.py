"""`mbv3fast embed` on real photographs."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import mbv3fast
from tests.cli import run


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


def test_a_terminated_run_leaves_nothing_behind(weights: Path, photos: Path, tmp_path: Path) -> None:
    slow = (
        "import time, mbv3fast.fast as f; g = f.FusedMobileNetV3.forward; "
        "f.FusedMobileNetV3.forward = lambda *a: (time.sleep(0.2), g(*a))[1]; import mbv3fast.cli; mbv3fast.cli.main()"
    )
    arguments = ["embed", str(photos), "--weights", str(weights), "--batch-size", "1", "--workers", "0"]
    process = subprocess.Popen([sys.executable, "-c", slow, *arguments, "--out", str(tmp_path / "f.npy")])
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.iterdir()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.terminate()
        assert process.wait(60) == 143
    finally:
        process.kill()
    assert list(tmp_path.iterdir()) == []
