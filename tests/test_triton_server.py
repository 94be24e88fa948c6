"""examples/triton_server: the repository that it writes, by the server's own schema and rules, and model.py on a stub.

The server itself doesn't run here.
"""

from __future__ import annotations

import ast
import copy
import importlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from PIL import Image
from torch import Tensor
from torch.utils import _pytree

import mbv3fast
from examples.triton_server import make_repository
from examples.triton_server.make_repository import TYPES, Package, Service, configuration, write
from mbv3fast import ExportError
from mbv3fast.cli.demo import read_sheet
from tests import triton_python_backend_utils as stub
from tests.networks import trained_small
from tests.numerics import Error, allowance, by_module
from tests.pages import ROOT, blocks

EXAMPLE = ROOT / "examples" / "triton_server"
PAGE = ROOT / "docs" / "serving.md"
IMAGES, LOGITS = "INPUT__0", "OUTPUT__0"
DIGITS = Package((64, 64, 3), torch.uint8, 10, torch.float32, "cpu")
CONFIG = {
    "input": [{"name": IMAGES, "data_type": "TYPE_UINT8", "dims": [64, 64, 3]}],
    "output": [{"name": LOGITS, "data_type": "TYPE_FP32", "dims": [10]}],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained Small in a repository, for a CPU; compiling takes long, and pytest's workers take what one made."""
    base = tmp_path_factory.getbasetemp()
    place = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    made = place / "triton-server" / "models" / "digits"
    with FileLock(place / "triton-server.lock"):
        if not made.exists():
            write(trained_small(), made, Service(max_batch=8), size=(64, 64), verify=False)
    return made


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """The sheet's 40 digits as a client would send them, bytes [40, 64, 64, 3]: image i shows the digit i % 10."""
    images = (image.convert("RGB").resize((64, 64), Image.Resampling.BILINEAR) for image in read_sheet()[0])
    return torch.stack([torch.from_numpy(np.array(image)) for image in images])


def started(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str = "CPU", device: str = "0") -> Any:
    """An instance of the folder's model.py, as the server makes one."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    spec = importlib.util.spec_from_file_location("served_model", folder / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    about = {"model_name": folder.name, "model_repository": str(folder), "model_version": "1"}
    instance = {"model_instance_kind": kind, "model_instance_device_id": device, "model_config": json.dumps(CONFIG)}
    model.initialize({**about, **instance})
    return model


def request(images: Tensor, name: str = IMAGES) -> stub.InferenceRequest:
    return stub.InferenceRequest([stub.Tensor(name, images.numpy().copy())])


def answers(model: Any, requests: Sequence[stub.InferenceRequest]) -> list[Tensor | stub.TritonError]:
    """Each request's logits or error, by the rules of the server: a response for each, inputs gone thereafter."""
    responses = model.execute(requests)
    assert [type(response) for response in responses] == [stub.InferenceResponse] * len(requests)
    for tensor in (tensor for each in requests for tensor in each.inputs()):
        tensor.as_numpy()[:] = 0
    found: list[Tensor | stub.TritonError] = []
    for response in responses:
        if response.has_error():
            found.append(response.error())
        else:
            (logits,) = response.output_tensors()
            assert logits.name() == LOGITS
            found.append(torch.from_numpy(logits.as_numpy()))
    return found


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


def test_requests_of_a_batch_are_one_run(folder: Path, digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = started(folder, monkeypatch)
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


def test_a_wrong_request_spoils_no_other(folder: Path, digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    model = started(folder, monkeypatch)
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


def test_a_failed_run_is_each_requests_error(folder: Path, digits: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the package refuses, as it would run out of memory; the next batch is served."""
    model = started(folder, monkeypatch)
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


def test_an_instance_loads_onto_its_device(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU's by its number; a package for another kind of device is refused."""
    loaded: list[tuple[str, int]] = []
    package = SimpleNamespace(get_metadata=lambda: {"AOTI_DEVICE_KEY": "cuda"})

    def load(path: str, device_index: int) -> Any:
        loaded.append((path, device_index))
        return package

    monkeypatch.setattr(torch._inductor, "aoti_load_package", load)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: loaded.append(("set_device", device.index)))
    assert started(folder, monkeypatch, "GPU", "1").device == torch.device("cuda:1")
    assert loaded == [("set_device", 1), (str(folder / "1" / "model.pt2"), 1)]
    with pytest.raises(stub.TritonModelException, match=r"model\.pt2 is for cuda, this instance is on cpu"):
        started(folder, monkeypatch)
    assert loaded[2:] == [(str(folder / "1" / "model.pt2"), -1)]


def test_the_model_needs_no_mbv3fast() -> None:
    tree = ast.parse((EXAMPLE / "model.py").read_text(encoding="utf-8"))
    named = [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    named += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    ours = {str(name).partition(".")[0] for name in named} - set(sys.stdlib_module_names)
    assert ours == {"torch", "triton_python_backend_utils"}


def parsed(text: str) -> Any:
    """config.pbtxt as the server reads it."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc]")
    return importlib.import_module("google.protobuf.text_format").Parse(text, schema.ModelConfig())


def named(message: Any, field: str) -> str:
    """The name of an enum's value."""
    return str(message.DESCRIPTOR.fields_by_name[field].enum_type.values_by_number[getattr(message, field)].name)


def assert_served(folder: Path) -> None:
    """What the server holds a model's folder to beyond its schema, and that the configuration is the package's."""
    config = parsed((folder / "config.pbtxt").read_text(encoding="utf-8"))
    assert config.name == folder.name
    assert config.HasField("dynamic_batching")
    assert config.max_batch_size > 0
    (images,), (logits,), (group,), (warmup,) = config.input, config.output, config.instance_group, config.model_warmup
    assert len((folder / logits.label_filename).read_text(encoding="utf-8").splitlines()) == logits.dims[0]
    example = warmup.inputs[images.name]
    assert (example.data_type, list(example.dims)) == (images.data_type, list(images.dims))
    assert 0 < warmup.batch_size <= config.max_batch_size

    dtypes = {name: dtype for dtype, name in TYPES.items()}
    package = torch._inductor.aoti_load_package(str(folder / "1" / "model.pt2"))
    assert named(group, "kind") == {"cpu": "KIND_CPU", "cuda": "KIND_GPU"}[package.get_metadata()["AOTI_DEVICE_KEY"]]
    batch = torch.zeros(config.max_batch_size, *images.dims, dtype=dtypes[named(images, "data_type")])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AOTI_RUNTIME_CHECK_INPUTS", "1")  # else the package reads whatever it is given
        given = package(batch)
    assert list(given.shape) == [len(batch), *logits.dims]
    assert given.dtype == dtypes[named(logits, "data_type")]
    called, returned = (_pytree.treespec_loads(spec) for spec in package.loader.get_call_spec())
    assert (called.num_leaves, returned.num_leaves) == (1, 1), "INPUT__0 and OUTPUT__0 are all"


def test_the_repository_is_whole(folder: Path) -> None:
    files = {str(path.relative_to(folder.parent)) for path in folder.parent.rglob("*") if path.is_file()}
    assert files == {f"digits/{name}" for name in ("config.pbtxt", "labels.txt", "1/model.py", "1/model.pt2")}
    assert (folder / "labels.txt").read_text() == "".join(f"{digit}\n" for digit in range(10))
    assert (folder / "1" / "model.py").read_text() == (EXAMPLE / "model.py").read_text()


def test_the_server_can_read_the_repository(folder: Path) -> None:
    assert_served(folder)
    config = parsed((folder / "config.pbtxt").read_text())
    assert (config.backend, config.platform, config.max_batch_size) == ("python", "", 8)
    for key, (told,) in CONFIG.items():  # what instances are told here
        (found,) = getattr(config, key)
        assert {"name": found.name, "data_type": named(found, "data_type"), "dims": list(found.dims)} == told


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ('name: "digits"', 'name: "digit"', "AssertionError"),
        ("dynamic_batching { max_queue_delay_microseconds: 0 }", "", "AssertionError"),
        ("max_batch_size: 8", "max_batch_size: 0", "AssertionError"),
        ("batch_size: 8\n  inputs", "batch_size: 9\n  inputs", "AssertionError"),
        ("[ 10 ]", "[ 11 ]", "AssertionError"),
        ("TYPE_FP32", "TYPE_FP16", "AssertionError"),
        ("KIND_CPU", "KIND_GPU", "AssertionError"),
        ("[ 64, 64, 3 ]", "[ 64, 32, 3 ]", "RuntimeError"),
        ("TYPE_UINT8", "TYPE_FP32", "RuntimeError"),
        ("labels.txt", "names.txt", "FileNotFoundError"),
        ("instance_group", "instance_groups", "ParseError"),
        ("TYPE_UINT8", "TYPE_BYTE", "ParseError"),
    ],
)
def test_a_wrong_configuration_is_seen(old: str, new: str, error: str, folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(folder, tmp_path / "digits")
    text = (folder / "config.pbtxt").read_text()
    assert old in text
    parsed(text)
    (copied / "config.pbtxt").write_text(text.replace(old, new))
    with pytest.raises(Exception) as caught:  # noqa: PT011 # the names are below
        assert_served(copied)
    assert caught.type.__name__ == error


def test_configurations_of_other_packages() -> None:
    """Half precision on GPUs, floats, the server's own backend."""
    gpu = Package((3, 224, 256), torch.float16, 1000, torch.float16, "cuda")
    config = parsed(configuration('a "b"', gpu, Service(max_batch=4, delay=500, instances=2)))
    (images,), (logits,), (group,) = config.input, config.output, config.instance_group
    assert config.name == 'a "b"'
    assert (named(images, "data_type"), list(images.dims)) == ("TYPE_FP16", [3, 224, 256])
    assert (named(logits, "data_type"), list(logits.dims)) == ("TYPE_FP32", [1000])
    assert (named(group, "kind"), group.count, list(group.gpus)) == ("KIND_GPU", 2, [])
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.parameters["FORCE_CPU_ONLY_INPUT_TENSORS"].string_value == "no"
    config = parsed(configuration("b", replace(gpu, given=torch.bfloat16), Service("pytorch")))
    assert (config.backend, config.platform) == ("pytorch", "torch_aoti")
    assert named(config.output[0], "data_type") == "TYPE_BF16", "as the package gives it"
    assert not config.parameters


def exported(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As if packages were made in no time; the arguments of the last."""
    called: dict[str, Any] = {}

    def export(_: Any, path: Path, **arguments: Any) -> None:
        called.update(arguments)
        path.write_bytes(b"a package")

    monkeypatch.setattr(mbv3fast, "export", export)
    return called


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = exported(monkeypatch)
    folder = tmp_path / "models" / "digits"
    options = ["--weights", "digits", "--device", "cpu", "--runner", "pytorch", "--max-batch", "16", "--delay", "250"]
    ran = CliRunner().invoke(make_repository.main, [str(folder), *options])
    assert ran.exit_code == 0, ran.output
    assert ran.output == f"{folder}: 1/model.pt2, config.pbtxt, labels.txt\n"
    assert called == {"size": (64, 64), "batch": 16, "uint8": True, "backend": "auto", "verify": True}
    expected = configuration("digits", DIGITS, Service("pytorch", max_batch=16, delay=250))
    assert (folder / "config.pbtxt").read_text() == expected
    again = CliRunner().invoke(make_repository.main, [str(folder), *options])
    assert again.exit_code == 1
    assert f"Error: folder: {folder} is there already" in again.output

    floats = ["--floats", "--size", "96", "64", "--batch", "2", "--instances", "3", "--no-check", "--dtype", "bfloat16"]
    ran = CliRunner().invoke(make_repository.main, [str(tmp_path / "f"), "--weights", "digits", *floats])
    assert ran.exit_code == 0, ran.output
    assert called == {"size": (96, 64), "batch": 2, "uint8": False, "backend": "auto", "verify": False}
    package = Package((3, 96, 64), torch.bfloat16, 10, torch.bfloat16, "cpu")
    assert (tmp_path / "f" / "config.pbtxt").read_text() == configuration("f", package, Service(instances=3))


def test_what_cannot_be_served_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mbv3fast.small(num_classes=0).eval()
    with pytest.raises(ValueError, match=r"^model: has no classifier, needs one"):
        write(model, tmp_path / "m", Service(), size=(64, 64))
    with pytest.raises(ValueError, match=r"^max_batch: got 50000, needs fewer images of 224x224"):
        write(trained_small(), tmp_path / "m", Service(max_batch=50000), size=(224, 224))

    def fails(*_: Any, **__: Any) -> None:
        raise ExportError("no compiler")

    monkeypatch.setattr(mbv3fast, "export", fails)
    ran = CliRunner().invoke(make_repository.main, [str(tmp_path / "m"), "--weights", "digits", "--device", "cpu"])
    assert (ran.exit_code, ran.output) == (1, "Error: no compiler\n")
    assert list(tmp_path.iterdir()) == []


def test_labels_are_a_line_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exported(monkeypatch)
    model = copy.deepcopy(trained_small())
    model.labels = ("a\nb", "  zwölf ", *"23456789")
    write(model, tmp_path / "m", Service(), size=(64, 64))
    lines = (tmp_path / "m" / "labels.txt").read_text(encoding="utf-8").split("\n")
    assert lines == ["a b", "zwölf", *"23456789", ""]


def test_the_page_shows_what_is_written(folder: Path) -> None:
    """Of the command that stands there, whose package is the fixture's but for its batch."""
    python, pytorch = (block for block in blocks(PAGE, "text") if block.startswith("name:"))
    assert python == configuration("digits", DIGITS, Service())
    assert python.replace("batch_size: 32", "batch_size: 8") == (folder / "config.pbtxt").read_text()
    assert pytorch == configuration("digits", DIGITS, Service("pytorch"))


def test_the_pages_client(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its requests by gRPC's classes, which are named alike, answered by model.py instead of a server."""
    client = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[grpc]")
    model = started(folder, monkeypatch)
    (code,) = blocks(PAGE, "python")
    monkeypatch.chdir(tmp_path)
    read_sheet()[0][7].save("digit.png")

    def infer(name: str, inputs: list[Any], outputs: list[Any]) -> Any:
        (images,), (classes,) = inputs, outputs
        assert (name, images.datatype(), classes.name()) == ("digits", "UINT8", LOGITS)
        count = classes._get_tensor().parameters["classification"].int64_param
        pixels = np.frombuffer(images._get_content(), np.uint8).reshape(images.shape())
        (logits,) = answers(model, [request(torch.from_numpy(pixels.copy()), images.name())])
        labels = (folder / "labels.txt").read_text().splitlines()
        rows = [[f"{row[i]:f}:{i}:{labels[i]}".encode() for i in row.topk(count).indices.tolist()] for row in logits]
        return SimpleNamespace(as_numpy={classes.name(): np.array(rows, dtype=object)}.get)

    server = SimpleNamespace(infer=infer)
    monkeypatch.setattr(client, "InferenceServerClient", lambda url: server if url.startswith("127.0.0.1:") else None)
    exec(compile(code.replace("tritonclient.http", "tritonclient.grpc"), PAGE.name, "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("7 ")
