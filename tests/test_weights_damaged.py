"""Files that are cut off, damaged, hostile or no weights at all: one clear error, and nothing in them is run."""

from __future__ import annotations

import copy
import enum
import functools
import io
import json
import os
import pickle
import random
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import mbv3fast
from mbv3fast import WeightsError
from mbv3fast.config import network
from mbv3fast.fast import FusedMobileNetV3
from tests.peers import ours, trained

FORMATS = {"safetensors": ".safetensors", "zip": ".pth", "legacy": ".pt"}


@functools.cache
def model() -> FusedMobileNetV3:
    """Three classes, half the width: a small file."""
    return trained(ours("small", width_mult=0.5, num_classes=3))


def write(state: dict[str, Any], path: Path, form: str) -> Path:
    if form == "safetensors":
        safetensors.torch.save_file(state, path, {"mbv3fast": model().description().to_json()})
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    return path


def refused(path: Path, message: str) -> str:
    with pytest.raises(WeightsError, match=message) as refusal:
        mbv3fast.load(path)
    return str(refusal.value)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("part", [0, 4, 8, 100, 0.5, -1])
def test_a_truncated_file(form: str, part: float, tmp_path: Path) -> None:
    path = write(model().state_dict(), tmp_path / f"whole{FORMATS[form]}", form)
    content = path.read_bytes()
    cut = tmp_path / f"cut{FORMATS[form]}"
    cut.write_bytes(content[: int(len(content) * part) if part == 0.5 else int(part)])
    refused(cut, rf"^weights: {re.escape(str(cut))} .*truncated or damaged\?")
    assert mbv3fast.load(path).config == (model().config)


def damage(content: bytes, seed: int) -> bytes:
    """Up to eight bytes of `content` changed."""
    chance = random.Random(seed)
    damaged = bytearray(content)
    for _ in range(chance.choice((1, 2, 8))):
        damaged[chance.randrange(len(damaged))] = chance.randrange(256)
    return bytes(damaged)


def damage_pickle(content: bytes, seed: int) -> bytes:
    """The zip file `content` with its pickle damaged, but the checksums right."""
    result = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(result, "w") as after:
        for name in before.namelist():
            entry = before.read(name)
            after.writestr(name, damage(entry, seed) if name.endswith("data.pkl") else entry)
    return result.getvalue()


@pytest.mark.parametrize(("form", "change"), [("safetensors", damage), ("zip", damage), ("zip", damage_pickle)])
def test_random_damage_is_refused_or_harmless(form: str, change: Callable[[bytes, int], bytes], tmp_path: Path) -> None:
    """At best the weights are incomplete, as these here are from the start."""
    path = write({"features.0.0.weight": torch.ones(16, 3, 3, 3)}, tmp_path / f"model{FORMATS[form]}", form)
    whole = path.read_bytes()
    for seed in range(400):
        path.write_bytes(change(whole, seed))
        refused(path, "^weights: ")


def html(path: Path) -> None:
    path.write_text("<!DOCTYPE html><title>404</title>")


def foreign_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("folder/readme.txt", "no checkpoint")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", html, r"truncated or damaged\?|something other than tensors"),
        ("a.safetensors", html, r"no whole safetensors file \(truncated or damaged\?\)"),
        ("a.pth", foreign_zip, r"can't be read \(truncated or damaged\?\)"),
        ("a.onnx", html, r"a\.onnx is neither \.safetensors nor one of \.pth, \.pt, \.bin, \.ckpt, \.tar$"),
        ("a.pth", lambda path: path.mkdir(), r"a\.pth is not a file$"),
        ("a.safetensors", lambda _: None, r"a\.safetensors is not a file$"),
        ("a.pth", lambda path: torch.save([torch.zeros(3)], path), "^weights: got list, needs a non-empty state dict$"),
        ("a.pth", lambda path: torch.save({}, path), "^weights: got dict, needs a non-empty state dict$"),
    ],
)
def test_a_file_of_another_kind(name: str, content: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    content(tmp_path / name)
    assert "pickled code" not in refused(tmp_path / name, message)


class Hostile:
    """Unpickled without care, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle"])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".tar"])
def test_pickled_code_is_not_run(form: str, suffix: str, tmp_path: Path) -> None:
    state = {**model().state_dict(), "extra": Hostile(tmp_path / "ran")}
    path = tmp_path / f"model{suffix}"
    if form == "pickle":
        path.write_bytes(pickle.dumps(Hostile(tmp_path / "ran"), protocol=2))
    else:
        write(state, path, form)
    refused(path, r"holds pickled code \(posix\.mkdir\), which is not run; save model\.state_dict\(\) instead")
    assert not (tmp_path / "ran").exists()


def test_a_pickled_model_is_named(tmp_path: Path) -> None:
    torch.save(model(), tmp_path / "model.pth")
    refused(
        tmp_path / "model.pth", r"pickled code \(mbv3fast\.fast\.FusedMobileNetV3\), which is not run; save model\."
    )


class Absent(enum.Enum):
    ABSENT = enum.auto()


ABSENT = Absent.ABSENT
BLOCK = network("small").to_dict()["blocks"][0]
DAMAGES: list[tuple[str, Any]] = [
    ("config", ABSENT),
    ("config.stem", ABSENT),
    ("config.stem", "16"),
    ("config.stem", True),
    ("config.stem", -16),
    ("config.stem", 0),
    ("config.stem", 10**30),
    ("config.variant", "medium"),
    ("config.activation", "tanh"),
    ("config.bn_eps", float("nan")),
    ("config.bn_eps", -1.0),
    ("config.dropout", 7.0),
    ("config.num_classes", -1),
    ("config.in_chans", 4),
    ("config.last_convs", []),
    ("config.last_convs", ["288"]),
    ("config.blocks", None),
    ("config.blocks", []),
    ("config.blocks.0", []),
    ("config.blocks.0.kernel", 0),
    ("config.blocks.0.kernel", -3),
    ("config.blocks.0.kernel", None),
    ("config.blocks.0.stride", 0),
    ("config.blocks.0.squeeze", -1),
    ("config.blocks.0.activation", "tanh"),
    ("config.blocks.0.squeeze_activation", "tanh"),
    ("config.blocks.0.skip", ABSENT),
    ("preprocess", []),
    ("preprocess.crop", ABSENT),
    ("preprocess.crop", "224"),
    ("preprocess.crop", 224.0),
    ("preprocess.crop", 512),
    ("preprocess.mean", ["a", "b", "c"]),
    ("preprocess.mean", [0.5, 0.5]),
    ("preprocess.std", [0.0, 0.0, 0.0]),
    ("preprocess.interpolation", []),
    ("preprocess.interpolation", "nearest"),
    ("preprocess.gamma", 1),
    ("labels", ABSENT),
    ("labels", 3),
    ("labels", "cat"),
    ("labels", {"cat": 0, "dog": 1, "fox": 2}),
    ("labels", [1, 2, 3]),
]


def damaged_json(where: str, value: Any) -> str:
    fields = json.loads(model().description().to_json())
    *folders, last = where.split(".")
    place = functools.reduce(lambda at, key: at[int(key) if key.isdigit() else key], folders, fields)
    if value is ABSENT:
        del place[last]
    else:
        place[int(last) if last.isdigit() else last] = value
    return json.dumps(fields)


def save_with(metadata: str, path: Path) -> Path:
    safetensors.torch.save_file(model().state_dict(), path, {"mbv3fast": metadata})
    return path


@pytest.mark.parametrize(("where", "value"), [pytest.param(*case, id="{}={!r:.20}".format(*case)) for case in DAMAGES])
def test_damaged_metadata_of_a_safetensors_file(where: str, value: Any, tmp_path: Path) -> None:
    refused(save_with(damaged_json(where, value), tmp_path / "model.safetensors"), "^weights: ")


@pytest.mark.parametrize("text", ["", "{", "null", "3", "[]", '"config"', pytest.param("[" * 100_000, id="nested")])
def test_metadata_that_are_no_description(text: str, tmp_path: Path) -> None:
    refused(save_with(text, tmp_path / "model.safetensors"), "^weights: .*mbv3fast metadata is damaged")


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("config.stem", "16", r"config\.stem: got '16', needs int"),
        ("config.blocks.0.skip", ABSENT, r"config\.blocks: got \{.*\}, needs the fields \["),
        ("config.blocks", [BLOCK] * 100_000, "100000 blocks are described, but only 244 tensors given"),
        ("config.last_convs", [288] * 2_000, "described, but only 244 tensors given"),
        ("preprocess.mean", [0.5, 0.5], "mean, std: got 2 and 3 numbers, needs one a channel"),
        ("labels", [1, 2, 3], "labels are not strings"),
    ],
)
def test_damage_is_named(where: str, value: Any, message: str, tmp_path: Path) -> None:
    refused(save_with(damaged_json(where, value), tmp_path / "model.safetensors"), message)


def test_damaged_metadata_of_a_state_dict(tmp_path: Path) -> None:
    state = copy.copy(model().state_dict())
    state._metadata = {"": {"mbv3fast": damaged_json("config.stem", "16")}}
    torch.save(state, tmp_path / "model.pth")
    refused(tmp_path / "model.pth", r"^weights: mbv3fast metadata is damaged: TypeError: config\.stem: got '16'")
