"""Exports that are refused or fail, each in words, and what the command line says."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import mbv3fast
from mbv3fast import BackendError, ExportError, deploy
from mbv3fast.agreement import Difference
from mbv3fast.backend import Request
from mbv3fast.cli import main
from mbv3fast.deploy import Exported, export
from mbv3fast.deploy.check import compare, run_afresh
from mbv3fast.deploy.job import Job, Written
from tests.networks import short_small, trained_small
from tests.numerics import by_module
from tests.test_deploy import AS_BOUNDED, BOUNDED


def hooked() -> nn.Module:
    model = mbv3fast.small().eval()
    model.register_forward_hook(lambda *_: None)
    return model


def partly_training() -> nn.Module:
    model = mbv3fast.small().eval()
    model.get_submodule("features.3.block.0.1").train()
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
        ({"path": "dangling.pt2"}, r"path: got dangling\.pt2, whose folder does not exist"),
        ({"path": "loop.pt2"}, r"path: got loop\.pt2"),
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
        ({"path": "x.onnx", "model": mbv3fast.small().eval().double()}, r"model: is torch.float64, an .onnx needs"),
        ({"model": mbv3fast.small()}, r"model: itself is in training mode; call eval\(\) first"),
        ({"path": "x.onnx", "model": partly_training()}, r"model: features\.3\.block\.0\.1 is in training mode"),
        ({"model": mbv3fast.small().eval().to("meta")}, r"model: is on meta, it has no weights"),
        ({"model": hooked()}, r"model: the model's own forward methods are overridden, or it has hooks"),
    ],
)
def test_arguments_that_are_refused(
    arguments: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.pt2").mkdir()
    Path("dangling.pt2").symlink_to("nowhere/x.pt2")
    Path("loop.pt2").symlink_to("loop.pt2")
    with pytest.raises((ValueError, TypeError, BackendError), match=message):
        export(**{"model": trained_small(), "path": "x.pt2", **arguments})
    assert {path.name for path in tmp_path.iterdir()} == {"folder.pt2", "dangling.pt2", "loop.pt2"}


def test_a_folder_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # who runs the tests may be root
    with pytest.raises(ValueError, match=r"^path: got .*small\.pt2, whose folder can't be written$"):
        export(short_small(), tmp_path / "small.pt2")


@pytest.mark.skipif(not BOUNDED, reason="needs PyTorch 2.9")
def test_an_older_pytorch_bounds_the_batch(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^\.pt2: PyTorch \S+ bounds the batch on a CPU, needs 2\.10 or later$"):
        export(short_small(), tmp_path / "small.pt2", size=(64, 64))


def test_nothing_is_exported_under_autocast(tmp_path: Path) -> None:
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match=r"^model: is exported under autocast"):
        export(short_small(), tmp_path / "small.pt2", size=(64, 64))


def test_a_package_holds_no_cuda_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbv3fast.deploy.aot_package.requested", lambda name: Request(name, "backend"))
    with pytest.raises(BackendError, match=r"^backend: a package can't hold CUDA's kernels; use 'triton' or 'torch'$"):
        export(short_small(), tmp_path / "small.pt2", size=(64, 64), backend="cuda")


@pytest.mark.parametrize("opset", [17, 99])
def test_an_opset_that_is_none(opset: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused before anything is exported."""
    pytest.importorskip("onnx")
    monkeypatch.setattr(torch.onnx, "export", None)
    with pytest.raises(ValueError, match=rf"^opset: got {opset}, needs 18 to \d\d, the newest of the installed onnx$"):
        export(short_small(), tmp_path / "small.onnx", size=(64, 64), opset=opset, verify=False)
    assert list(tmp_path.iterdir()) == []


def test_an_opset_that_pytorch_does_not_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx = pytest.importorskip("onnx")
    monkeypatch.setattr(onnx.defs, "onnx_opset_version", lambda: 99)
    with pytest.raises(ExportError, match=r"^\.onnx: opset 99 was asked for, PyTorch wrote \d+$"):
        export(short_small(), tmp_path / "small.onnx", size=(64, 64), opset=99, verify=False)
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


def test_threads_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's tracers know one trace a process."""
    at_work: list[Path] = []
    together: list[int] = []

    def write(_job: Job, path: Path) -> Written:
        at_work.append(path)
        together.append(len(at_work))
        time.sleep(0.05)
        path.write_bytes(b"")
        at_work.remove(path)
        return Written("", None)

    monkeypatch.setitem(deploy._WRITERS, ".pt2", write)
    with ThreadPoolExecutor(3) as pool:
        files = [pool.submit(export, short_small(), tmp_path / f"{i}.pt2", verify=False) for i in range(3)]
        assert [file.result().bytes for file in files] == [0, 0, 0]
    assert together == [1, 1, 1]


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real export by it is in the tests of the functions; here is what it passes on and prints."""
    called: list[dict[str, Any]] = []

    def told(_model: Any, path: Path, **arguments: Any) -> Exported:
        called.append(arguments)
        tried = (Difference(1e-6, 2e-6), ((1, 3, 64, 64), (33, 3, 64, 64))) if len(called) > 1 else (None,)
        return Exported(path, "operators", "float32 [N]", 3 << 20, *tried)

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
    assert said(onnx, "--opset", "20")[2:] == [
        "run in a fresh process, for batches of 1, 33: it errs by 1e-06, 2e-06 is allowed"
    ]
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
