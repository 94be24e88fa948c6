"""examples/triton_server/make_repository.py: what it writes, by the schema and the rules of the server."""

from __future__ import annotations

import copy
import importlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch.utils import _pytree

import mbv3fast
from examples.triton_server import make_repository
from examples.triton_server.make_repository import TYPES, Package, Service, configuration, write
from mbv3fast import ExportError
from tests.networks import trained_small
from tests.triton_server import CONFIG, EXAMPLE, PAGE

DIGITS = Package((64, 64, 3), torch.uint8, 10, torch.float32, "cpu")


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


def test_the_repository_is_whole(digits_folder: Path) -> None:
    files = {str(path.relative_to(digits_folder.parent)) for path in digits_folder.parent.rglob("*") if path.is_file()}
    assert files == {f"digits/{name}" for name in ("config.pbtxt", "labels.txt", "1/model.py", "1/model.pt2")}
    assert (digits_folder / "labels.txt").read_text() == "".join(f"{digit}\n" for digit in range(10))
    assert (digits_folder / "1" / "model.py").read_text() == (EXAMPLE / "model.py").read_text()


def test_the_server_can_read_the_repository(digits_folder: Path) -> None:
    assert_served(digits_folder)
    config = parsed((digits_folder / "config.pbtxt").read_text())
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
def test_a_wrong_configuration_is_seen(old: str, new: str, error: str, digits_folder: Path, tmp_path: Path) -> None:
    copied = shutil.copytree(digits_folder, tmp_path / "digits")
    text = (digits_folder / "config.pbtxt").read_text()
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


def test_the_page_shows_what_is_written(digits_folder: Path) -> None:
    """Of the command that stands there, whose package is the fixture's but for its batch; the second way's lines."""
    from tests.pages import blocks  # needs the guide's packages

    python, pytorch = (block for block in blocks(PAGE, "text") if "backend: " in block)
    assert python == configuration("digits", DIGITS, Service())
    assert python.replace("batch_size: 32", "batch_size: 8") == (digits_folder / "config.pbtxt").read_text()
    assert python.replace('backend: "python"\n', pytorch) == configuration("digits", DIGITS, Service("pytorch"))
