"""Exported files: run by a fresh process that never imports the package, and compared with the model."""

from __future__ import annotations

import copy
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import mbv3fast
from mbv3fast import BackendError, ExportError
from mbv3fast.agreement import Difference
from mbv3fast.backend import Request
from mbv3fast.cli import main
from mbv3fast.deploy import Exported, export, reload
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


def hooked() -> nn.Module:
    model = mbv3fast.small().eval()
    model.register_forward_hook(lambda *_: None)
    return model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "x.pth"}, r"path: got x\.pth, needs the suffix \.pt2 or \.onnx"),
        ({"path": "nowhere/x.pt2"}, r"path: got nowhere/x\.pt2, whose folder does not exist"),
        ({"path": "."}, r"path: got \., needs the suffix"),
        (
            {"size": (16, 64)},
            r"size: got \(16, 64\), needs a height and a width of at least 32, and at most 2\^30 pixels",
        ),
        ({"size": (1 << 16, 1 << 16)}, r"size: got .*, needs .* at most 2\^30 pixels"),
        ({"path": "x.onnx", "backend": "triton"}, r"backend: got 'triton', an .onnx has PyTorch's operators alone"),
        ({"path": "x.onnx", "model": mbv3fast.small().eval().bfloat16()}, r"model: is torch.bfloat16, an .onnx needs"),
        ({"path": "folder.pt2"}, r"path: got folder\.pt2, which is a folder"),
        ({"opset": 22}, r"opset: got 22, only an \.onnx has one"),
        ({"path": "x.onnx", "opset": "22"}, r"opset: got '22', needs a whole number"),
        ({"batch": "8"}, r"batch: got '8', needs a whole number of images"),
        ({"size": 64}, r"size: got 64, needs a height and a width"),
        ({"batch": 0}, r"batch: got 0, needs at least 1 image"),
        ({"batch": 10**7}, r"batch: got 10000000, needs at most 42799 images of 224x224"),
        ({"backend": "triton"}, r"backend: 'triton' can't serve torch.float32 on cpu"),
        ({"backend": "mps"}, r"backend: got 'mps', needs one of auto"),
        ({"model": nn.Linear(1, 1)}, r"model: got a Linear, needs one of mbv3fast's"),
        ({"model": mbv3fast.small()}, r"model: is in training mode"),
        ({"model": hooked()}, r"model: the model's own forward methods are overridden, or it has hooks"),
    ],
)
def test_arguments_that_are_refused(
    arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.pt2").mkdir()
    with pytest.raises((ValueError, TypeError, BackendError), match=message):
        export(**{"model": trained_small(), "path": "x.pt2", **arguments})
    assert [path.name for path in tmp_path.iterdir()] == ["folder.pt2"]


@pytest.mark.skipif(not BOUNDED, reason="needs PyTorch 2.9")
def test_an_older_pytorch_bounds_the_batch(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^\.pt2: PyTorch \S+ bounds the batch on a CPU, needs 2\.10 or later$"):
        export(short_small(), tmp_path / "small.pt2", size=(64, 64))


def test_padding_of_any_size_in_onnx(tmp_path: Path) -> None:
    """TensorFlow's depends on it; where it were rounded otherwise, odd sizes err."""
    pytest.importorskip("onnxruntime")
    model = trained(mbv3fast.small(source="timm-tf", width_mult=0.25, num_classes=5))
    made = export(model, tmp_path / "same.onnx", size=(65, 97))
    assert_right(made.path, model, photographs(2, 111)[:, :, :98, :111].contiguous())


def test_nothing_is_exported_under_autocast(tmp_path: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=r"^model: is exported under autocast"):
        export(short_small(), tmp_path / "small.pt2", size=(64, 64))


def test_a_package_holds_no_cuda_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbv3fast.deploy.aot_package.requested", lambda name: Request(name, "backend"))
    with pytest.raises(BackendError, match=r"^backend: a package can't hold CUDA's kernels; use 'triton' or 'torch'$"):
        export(short_small(), tmp_path / "small.pt2", size=(64, 64), backend="cuda")


@pytest.mark.parametrize("opset", [17, 99])
def test_an_opset_that_pytorch_does_not_write(opset: int, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    with pytest.raises(ExportError, match=rf"^\.onnx: opset {opset} was asked for, PyTorch wrote \d+$"):
        export(short_small(), tmp_path / "small.onnx", size=(64, 64), opset=opset, verify=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_onnx_without_its_packages(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(ExportError, match=rf"^\.onnx: needs .*{missing}.*: pip install 'mbv3fast\[onnx\]'$"):
        export(short_small(), tmp_path / "small.onnx", size=(64, 64))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: [], r"^\.pt2: the file put out 0 tensors, needs 1$"),
        (
            lambda out: [out[:, :9]],
            r"^\.pt2: the file put out torch\.float32 \[1, 9\], needs torch\.float32 \[1, 10\]$",
        ),
        (lambda out: [out.double()], r"^\.pt2: the file put out torch\.float64 \[1, 10\], needs torch\.float32"),
        (lambda out: [out * float("nan")], r"the file's outputs err by nan, \S+ is allowed$"),
    ],
)
def test_outputs_of_another_kind_are_refused(change: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def changed(_file: Path, inputs: list[torch.Tensor], _imports: Any) -> Any:
        return [change(*by_module(short_small(), x)) for x in inputs]

    monkeypatch.setattr("mbv3fast.deploy.check.run_afresh", changed)
    with pytest.raises(ExportError, match=message):
        compare(Job(short_small(), (64, 64), 1, False, "torch", 22), Path("small.pt2"), Written("", None, factor=10))


def test_a_reader_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hangs(command: Any, **_: Any) -> None:
        raise subprocess.TimeoutExpired(command, 600)

    monkeypatch.setattr(subprocess, "run", hangs)
    with pytest.raises(ExportError, match=r"^\.pt2: a fresh process has not run the file in 600 s$"):
        run_afresh(tmp_path / "small.pt2", [])


@pytest.mark.skipif(BOUNDED, reason=AS_BOUNDED)
def test_what_cannot_be_compiled_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no compiler")

    file = tmp_path / "model.pt2"
    file.write_text("before")
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", fails)
    with pytest.raises(ExportError, match=r"\.pt2: PyTorch can't compile it: no compiler"):
        export(trained_small(), file, size=(64, 64))
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]
    assert file.read_text() == "before"


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real export by it is in the tests of the functions; here is what it passes on and prints."""
    called: list[dict[str, Any]] = []

    def told(_model: Any, path: Path, **arguments: Any) -> Exported:
        called.append(arguments)
        return Exported(path, "operators", "float32 [N]", 3 << 20, Difference(1e-6, 2e-6) if len(called) > 1 else None)

    def said(*arguments: str) -> list[str]:
        ran = CliRunner().invoke(main, ["export", *arguments, "--weights", "digits"])
        assert ran.exit_code == 0, ran.output
        return ran.output.splitlines()

    monkeypatch.setattr("mbv3fast.cli.export.export_model", told)
    out, onnx = str(tmp_path / "small.pt2"), str(tmp_path / "small.onnx")
    options = ["--bytes", "--batch", "8", "--size", "64", "96", "--no-check", "--backend", "torch"]
    assert said(out, *options) == [
        f"{out}: 3.0 MiB, operators",
        "input: float32 [N]",
        "set AOTI_RUNTIME_CHECK_INPUTS=1 where it is read, or other inputs are taken for this one",
        "not tried",
    ]
    assert said(onnx, "--opset", "20")[2:] == ["run in a fresh process: it errs by 1e-06, 2e-06 is allowed"]
    given = {"size": (64, 96), "batch": 8, "uint8": True, "backend": "torch", "opset": None, "verify": False}
    defaults = {"size": (64, 64), "batch": 1, "uint8": False, "backend": "auto", "opset": 20, "verify": True}
    assert called == [given, defaults]


def test_the_command_lines_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ExportError("no room")

    monkeypatch.setattr("mbv3fast.cli.export.export_model", fails)
    ran = CliRunner().invoke(main, ["export", str(tmp_path / "small.pt2"), "--weights", "digits"])
    assert (ran.exit_code, ran.output) == (1, "Error: no room\n")
    ran = CliRunner().invoke(main, ["export", "x.txt", "--weights", "digits"])
    assert ran.exit_code == 2
    assert "Invalid value for OUT: x.txt: needs the suffix .pt2, .onnx" in ran.output


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
