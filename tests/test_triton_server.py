"""examples/triton_server/model.py on a stub of the server's module, and the client of docs/serving.md."""

from __future__ import annotations

import ast
import copy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mbv3fast.cli.demo import read_sheet
from tests import triton_python_backend_utils as stub
from tests.networks import trained_small
from tests.numerics import Error, allowance, by_module
from tests.triton_server import EXAMPLE, IMAGES, LOGITS, PAGE, answers, request, started


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """The sheet's 40 digits as a client would send them, bytes [40, 64, 64, 3]: image i shows the digit i % 10."""
    images = (image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR) for image in read_sheet()[0])
    return torch.stack([torch.from_numpy(np.array(image)) for image in images])


def counted(model: Any) -> list[list[int]]:
    """The shapes that the model's package is run on from now on."""
    shapes, package = [], model.package

    def run(batch: Tensor) -> Any:
        shapes.append(list(batch.shape))
        return package(batch)

    model.package = run
    return shapes


def assert_right(got: Any, images: Tensor) -> None:
    """The logits are the modules', but for ten times their own error, as Inductor rounds."""
    plain = by_module(trained_small(), images)[0]
    with torch.inference_mode():
        truth = copy.deepcopy(trained_small()).double().reference_forward(images)
    assert got.dtype == torch.float32
    assert Error.of(got, truth).within(allowance(plain, truth, factor=10))


def test_requests_of_a_batch_are_one_run(digits_folder: Path, digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = started(digits_folder, monkeypatch)
    shapes = counted(model)
    parts = digits[:8].split([1, 3, 4])
    found = answers(model, [request(part) for part in parts])
    assert shapes == [[8, 64, 64, 3]]
    for got, part in zip(found, parts, strict=True):
        assert_right(got, part)
    assert torch.cat(found).argmax(1).tolist() == list(range(8))
    (alone,) = answers(model, [request(digits[9:10])])
    assert alone.argmax() == 9
    assert answers(model, []) == []
    assert len(shapes) == 2


def test_a_wrong_request_spoils_no_other(digits_folder: Path, digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = started(digits_folder, monkeypatch)
    shapes = counted(model)
    wrong = {
        "smaller": request(digits[:1, :32]),
        "channels first": request(digits[:1].permute(0, 3, 1, 2)),
        "floats": request(digits[:1].float()),
        "nothing": request(digits[:0]),
        "no batch": request(digits[0]),
        "another name": request(digits[:1], "images"),
        "no bytes": stub.InferenceRequest([SimpleNamespace(name=lambda: IMAGES, as_numpy=lambda: np.zeros(1))]),
    }
    right = [request(digits[3:5]), request(digits[7:8])]
    found = answers(model, [right[0], *wrong.values(), right[1]])
    assert shapes == [[3, 64, 64, 3]]
    assert_right(found[0], digits[3:5])
    assert_right(found[-1], digits[7:8])
    errors = dict(zip(wrong, found[1:-1], strict=True))
    assert {error.code() for error in errors.values()} == {stub.TritonError.INVALID_ARG}
    needs = "needs torch.uint8 [N, 64, 64, 3]"
    assert errors["smaller"].message() == f"ValueError: INPUT__0: got torch.uint8 [1, 32, 64, 3], {needs}"
    assert errors["floats"].message() == f"ValueError: INPUT__0: got torch.float32 [1, 64, 64, 3], {needs}"
    assert errors["another name"].message() == "ValueError: INPUT__0: is missing"
    answers(model, [request(digits[:1, :32])])
    assert len(shapes) == 1, "nothing is left to run"


def test_a_failed_run_is_everybodys_error(digits_folder: Path, digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package refuses, as it would run out of memory; the next batch is served."""
    model = started(digits_folder, monkeypatch)
    package = model.package

    def fails(_: Tensor) -> None:
        raise torch.OutOfMemoryError("no room")

    model.package = fails
    for error in answers(model, [request(digits[:1]), request(digits[:2])]):
        assert (error.code(), error.message()) == (stub.TritonError.INTERNAL, "OutOfMemoryError: no room")
    model.package = package
    assert answers(model, [request(digits[2:3])])[0].argmax() == 2
    model.finalize()
    assert not hasattr(model, "package")


def test_an_instance_loads_onto_its_device(digits_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's by its number; a package for another kind of device is refused."""
    loaded: list[tuple[str, int]] = []
    package = SimpleNamespace(get_metadata=lambda: {"AOTI_DEVICE_KEY": "cuda"})

    def load(path: str, device_index: int) -> Any:
        loaded.append((path, device_index))
        return package

    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: loaded.append(("set_device", device.index)))
    assert started(digits_folder, monkeypatch, "GPU", "1").device == torch.device("cuda:1")
    assert loaded == [("set_device", 1), (str(digits_folder / "1" / "model.pt2"), 1)]
    with pytest.raises(stub.TritonModelException, match=r"model\.pt2 is for cuda, this instance is on cpu"):
        started(digits_folder, monkeypatch)
    assert loaded[2:] == [(str(digits_folder / "1" / "model.pt2"), -1)]


def test_the_model_needs_no_mbv3fast() -> None:
    tree = ast.parse((EXAMPLE / "model.py").read_text(encoding="utf-8"))
    named = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    named += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    ours = {str(name).partition(".")[0] for name in named} - set(sys.stdlib_module_names)
    assert ours == {"torch", "triton_python_backend_utils"}


def test_the_pages_client(
    digits_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its requests by gRPC's classes, which are named alike, answered by model.py instead of a server."""
    from tests.pages import blocks  # needs the guide's packages

    client = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
    model = started(digits_folder, monkeypatch)
    (code,) = blocks(PAGE, "python")
    monkeypatch.chdir(tmp_path)
    read_sheet()[0][7].save("digit.png")

    def infer(name: str, inputs: list[Any], outputs: list[Any]) -> Any:
        (images,), (classes,) = inputs, outputs
        assert (name, images.datatype(), classes.name()) == ("digits", "UINT8", LOGITS)
        count = classes._get_tensor().parameters["classification"].int64_param
        pixels = np.frombuffer(images._get_content(), np.uint8).reshape(images.shape())
        (logits,) = answers(model, [request(torch.from_numpy(pixels.copy()), images.name())])
        labels = (digits_folder / "labels.txt").read_text().splitlines()
        rows = [[f"{row[i]:f}:{i}:{labels[i]}".encode() for i in row.topk(count).indices.tolist()] for row in logits]
        return SimpleNamespace(as_numpy={classes.name(): np.array(rows, dtype=object)}.get)

    server = SimpleNamespace(infer=infer)
    monkeypatch.setattr(client, "InferenceServerClient", lambda url: server if url.startswith("127.0.0.1:") else None)
    exec(compile(code.replace("tritonclient.http", "tritonclient.grpc"), PAGE.name, "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("7 ")
