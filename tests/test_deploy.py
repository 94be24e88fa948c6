"""Exported files: run by a fresh process that never imports the package, and compared with the model."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import mbv3fast
from mbv3fast import ExportError
from mbv3fast.deploy import export, reload
from mbv3fast.deploy.check import compare, run_afresh
from mbv3fast.deploy.job import Job, Written, leaves
from mbv3fast.description import Description
from tests.networks import calibrated_features, digit_tiles, photographs, short_small, trained_small
from tests.numerics import Error, allowance, by_module, exact
from tests.once import made_once
from tests.peers import trained

ROOT = Path(__file__).parents[1]
BOUNDED = torch.__version__ < (2, 10)
AS_BOUNDED = "PyTorch 2.9 bounds the batch of packages for CPUs"


def assert_right(file: Path, model: Any, *inputs: torch.Tensor) -> None:
    """A fresh process puts out what the modules do, but for ten times their own error, as others' compilers round."""
    for x, outputs in zip(inputs, run_afresh(file, list(inputs)), strict=True):
        for got, plain, truth in zip(outputs, by_module(model, x), exact(model, x), strict=True):
            assert got.dtype == plain.dtype
            assert Error.of(got, truth).within(allowance(plain, truth, factor=10))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short network as a .pt2 for this CPU."""
    if BOUNDED:
        pytest.skip(AS_BOUNDED)

    def make(folder: Path) -> None:
        file = folder / "small.pt2"
        made = export(short_small(), file, size=(64, 64))
        assert made.contents.startswith("PyTorch's operators on folded weights, compiled for this CPU")
        assert made.input == "float32 [N, 3, 64, 64], N from 1 to 524,287"
        assert made.bytes == file.stat().st_size
        assert made.difference is not None
        assert 0 < made.difference.error <= made.difference.allowed
        assert list(folder.iterdir()) == [file], "nothing else is left"

    return made_once(tmp_path_factory, "package", make) / "small.pt2"


def test_a_package_runs_by_itself(package: Path) -> None:
    assert_right(package, short_small(), *(digit_tiles()[:count] for count in (1, 2, 40)))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 3, 64, 65), "unmatched dim value at 3, expected: 64, but got: 65"),
        (torch.zeros(2, 4, 64, 64), "unmatched dim value at 1, expected: 3, but got: 4"),
        (torch.zeros(2, 3, 64, 64).half(), "unmatched dtype"),
        (torch.zeros(2, 3, 64, 64).contiguous(memory_format=torch.channels_last), "unmatched stride value"),
    ],
)
def test_a_package_read_as_advised_refuses_other_inputs(
    package: Path, x: torch.Tensor, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AOTI_RUNTIME_CHECK_INPUTS", "0")  # which the reader sets anew
    with pytest.raises(RuntimeError, match=message):
        reload.load_package(str(package))(x)


def test_a_package_says_what_it_is(package: Path) -> None:
    metadata = torch._inductor.aoti_load_package(str(package)).get_metadata()
    described = Description.from_json(metadata["mbv3fast"])
    assert described == short_small().description()
    assert described.labels == tuple("0123456789")


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("c++") and shutil.which("cmake")), reason="needs CMake and a C++ compiler")
def test_a_package_runs_in_cpp(package: Path, tmp_path: Path) -> None:
    torch.save(digit_tiles()[:3], tmp_path / "images.pt")
    prefix = f"-DCMAKE_PREFIX_PATH={torch.utils.cmake_prefix_path}"
    subprocess.run(["cmake", "-S", ROOT / "examples" / "cpp", "-B", tmp_path / "build", prefix], check=True)
    subprocess.run(["cmake", "--build", tmp_path / "build"], check=True)
    files = [package, tmp_path / "images.pt", tmp_path / "output.pt"]
    ran = subprocess.run([tmp_path / "build" / "run_package", *files], check=True, capture_output=True, text=True)
    assert ran.stdout.startswith("[3, 10] in ")
    with torch.inference_mode():
        expected = short_small()(digit_tiles()[:3])
    torch.testing.assert_close(torch.load(tmp_path / "output.pt"), expected, rtol=1e-4, atol=1e-4)


def test_an_onnx_model_runs_by_itself(tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    file = tmp_path / "small.onnx"
    made = export(short_small(), file, size=(64, 64))
    assert made.contents == "ONNX's operators, opset 22, any height and width"
    assert made.input == "float32 [N, 3, H, W], N from 1"
    assert made.difference is not None
    assert_right(file, short_small(), digit_tiles()[:1], digit_tiles()[:5], photographs(2, 97)[:, :, :, :45])
    model = onnx.load(file)
    onnx.checker.check_model(model)
    assert [entry.version for entry in model.opset_import] == [22]
    described = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(described["mbv3fast"])["labels"] == list("0123456789")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_whole_network(tmp_path: Path, suffix: str) -> None:
    made = export(trained_small(), tmp_path / f"small{suffix}", size=(64, 64))
    assert made.difference is not None
    assert_right(made.path, trained_small(), *(digit_tiles()[:count] for count in (1, 2, 40)))


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_bytes_and_feature_maps(tmp_path: Path, suffix: str) -> None:
    for model, name in ((trained_small(), "bytes"), (calibrated_features(), "maps")):
        file = tmp_path / f"{name}{suffix}"
        made = export(model, file, size=(64, 96), uint8=name == "bytes")
        sides = "H, W" if suffix == ".onnx" else "64, 96"
        assert made.input.startswith({"bytes": f"uint8 [N, {sides}, 3]", "maps": f"float32 [N, 3, {sides}]"}[name])
        assert made.difference is not None


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_segmentation(tmp_path: Path, suffix: str) -> None:
    model = trained(mbv3fast.lraspp_large(num_classes=3))
    made = export(model, tmp_path / f"model{suffix}", size=(64, 96))
    assert_right(made.path, model, photographs(3, 97)[:, :, :64, :96].contiguous())


def test_a_file_that_computes_something_else_is_refused(package: Path, tmp_path: Path) -> None:
    """By a model that has been changed since the file was written, and by half a file."""
    written = Written("", None, factor=10)
    model = copy.deepcopy(short_small())
    with torch.no_grad():
        model.features[2].project[0].weight.mul_(1.01)
    job = Job(model, (64, 64), 1, False, "torch", 22)
    with pytest.raises(ExportError, match=r"\.pt2: for an input of .* the file's outputs err by .* is allowed"):
        compare(job, package, written)
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(package.read_bytes()[:1000])
    with pytest.raises(ExportError, match=r"a fresh process can't run the file"):
        compare(job, broken, written)


def test_padding_of_any_size_in_onnx(tmp_path: Path) -> None:
    """TensorFlow's depends on it; where it were rounded otherwise, odd sizes err."""
    pytest.importorskip("onnxruntime")
    model = trained(mbv3fast.small(source="timm-tf", width_mult=0.25, num_classes=5))
    made = export(model, tmp_path / "same.onnx", size=(65, 97))
    assert_right(made.path, model, photographs(2, 111)[:, :, :98, :111].contiguous())


def test_leaves_of_every_kind_of_model() -> None:
    x = torch.zeros(1, 3, 64, 64)
    with torch.inference_mode():
        assert len(leaves(trained_small()(x))) == 1
        assert len(leaves(calibrated_features()(x))) == 5
        assert len(leaves(mbv3fast.lraspp_large().eval()(x))) == 1


def test_the_reader_is_a_script_of_its_own() -> None:
    script = reload.__file__
    code = f"import runpy, sys; runpy.run_path({script!r}); assert 'mbv3fast' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=os.sep)
