"""The shipped checkpoint and the script that trained it."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import safetensors
import torch
from PIL import Image

import mbv3fast
from mbv3fast.assets import DIGITS_CHECKPOINT, DIGITS_SAMPLE
from tests.networks import TILE, digit_tiles, trained_small

SCRIPT = Path(__file__).parents[1] / "examples" / "train_digits.py"


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("train_digits", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_held_out_digits_are_read(example: ModuleType) -> None:
    train, held_out = example.split()
    assert len(held_out) == 360
    assert set(train).isdisjoint(held_out)
    assert example.accuracy(trained_small(), *example.tensors(held_out)) >= 0.97


def test_every_digit_of_the_sheet_is_read() -> None:
    with torch.inference_mode():
        read = trained_small()(digit_tiles()).argmax(1)
    assert read.tolist() == list(range(10)) * 4


def test_the_sheet_shows_held_out_digits(example: ModuleType, tmp_path: Path) -> None:
    _, held_out = example.split()
    images, labels = example.digit_images()
    with Image.open(DIGITS_SAMPLE) as sheet:
        assert (sheet.size, sheet.mode) == ((10 * TILE, 4 * TILE), "L")
        tiles = np.array(sheet).reshape(4, TILE, 10, TILE).transpose(0, 2, 1, 3).reshape(40, TILE, TILE)
    shown = {(labels[i], np.array(images[i]).tobytes()) for i in held_out}
    assert {(index % 10, tile.tobytes()) for index, tile in enumerate(tiles)} <= shown
    example.write_sheet(tmp_path / "sheet.png", held_out)
    with Image.open(tmp_path / "sheet.png") as again, Image.open(DIGITS_SAMPLE) as sheet:
        assert np.array_equal(np.array(again), np.array(sheet))


def test_the_file_is_small_and_half_precision() -> None:
    assert DIGITS_CHECKPOINT.stat().st_size < 3.2e6
    with safetensors.safe_open(DIGITS_CHECKPOINT, framework="pt") as file:
        dtypes = {key: file.get_tensor(key).dtype for key in file.keys()}  # noqa: SIM118 (not a dict)
    counters = {key for key in dtypes if key.endswith("num_batches_tracked")}
    assert {dtypes[key] for key in counters} == {torch.int64}
    assert {dtype for key, dtype in dtypes.items() if key not in counters} == {torch.float16}


def test_its_model_is_described(example: ModuleType) -> None:
    model = trained_small()
    assert model.labels == tuple("0123456789")
    assert model.transforms() == example.PREPROCESS
    assert (model.config.variant, model.num_classes, model.config.bn_eps) == ("small", 10, 1e-5)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_half_precision_costs_no_digit(example: ModuleType) -> None:
    x, labels = example.tensors(example.split()[1])
    with torch.inference_mode():
        exact = trained_small()(x).argmax(1)
        half = mbv3fast.small(weights="digits").bfloat16().eval()(x.bfloat16()).argmax(1)
    assert ((exact == labels) & (half != labels)).float().mean() <= 0.01


def test_augmentation_moves_and_keeps_digits(example: ModuleType) -> None:
    x, _ = example.tensors(example.split()[0][:8])
    moved = example.augment(x, torch.Generator().manual_seed(0))
    assert moved.shape == x.shape
    assert moved.min() >= -1 - 1e-5
    assert moved.max() <= x.max() + 1e-5
    assert (moved != x).flatten(1).any(1).all()
    # Scaling by up to 15% changes the amount of ink by up to 38%.
    ink, before = ((image + 1).sum((1, 2, 3)) for image in (moved, x))
    assert (ink / before).sub(1).abs().max() < 0.45


def test_one_epoch_writes_a_checkpoint(tmp_path: Path) -> None:
    path, sheet = tmp_path / "digits.safetensors", tmp_path / "sheet.png"
    command = [sys.executable, str(SCRIPT), "--epochs", "1", "--out", str(path), "--sheet", str(sheet)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert f"held-out accuracy of {path}: 0." in result.stdout
    model = mbv3fast.small(weights=path).eval()
    assert model.labels == tuple("0123456789")
    with torch.inference_mode():
        assert model(digit_tiles()).shape == (40, 10)
    assert sheet.is_file()
