"""Export a model as a folder of a model repository of NVIDIA Triton Inference Server.

    python examples/triton_server/make_repository.py models/digits --weights digits

docs/serving.md says how the server is started on it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import click
import torch

import mbv3fast
from mbv3fast import BackendError, ExportError, UnsupportedError
from mbv3fast.cli.classify import class_names
from mbv3fast.cli.options import evaluated_size, load_model, model_options
from mbv3fast.fast import FusedMobileNetV3

TYPES = {
    torch.uint8: "TYPE_UINT8",
    torch.float32: "TYPE_FP32",
    torch.float16: "TYPE_FP16",
    torch.bfloat16: "TYPE_BF16",
}
RUNNERS = {"python": 'backend: "python"', "pytorch": 'backend: "pytorch"\nplatform: "torch_aoti"'}
# The names are those that the PyTorch backend has for the only input and the only output of a package.
CONFIG = Template("""\
name: $name
$runner
max_batch_size: $max_batch
input [ { name: "INPUT__0" data_type: $taken dims: [ $dims ] } ]
output [ { name: "OUTPUT__0" data_type: $given dims: [ $classes ] label_filename: "labels.txt" } ]
instance_group [ { count: $instances kind: $kind } ]
dynamic_batching { max_queue_delay_microseconds: $delay }
model_warmup [ {
  name: "the largest batch"
  batch_size: $max_batch
  inputs { key: "INPUT__0" value { data_type: $taken dims: [ $dims ] zero_data: true } }
} ]
""")
KEPT_ON_GPU = """\
# Images that are on the GPU, from shared memory or from another model, stay there.
parameters { key: "FORCE_CPU_ONLY_INPUT_TENSORS" value { string_value: "no" } }
"""


@dataclass(frozen=True)
class Service:
    """How the server runs a package: by model.py ("python") or by its own backend ("pytorch"), so many images at once,
    whose requests wait for so many microseconds, in so many instances on each device.
    """

    runner: str = "python"
    max_batch: int = 32
    delay: int = 0
    instances: int = 1


@dataclass(frozen=True)
class Package:
    """What a package takes and gives: an image's shape and dtype; logits, their dtype; on "cpu" or "cuda"."""

    shape: tuple[int, int, int]
    taken: torch.dtype
    classes: int
    given: torch.dtype
    device: str


def configuration(name: str, package: Package, service: Service) -> str:
    """The text of config.pbtxt."""
    python, gpu = service.runner == "python", package.device == "cuda"
    text = CONFIG.substitute(
        name=json.dumps(name),
        runner=RUNNERS[service.runner],
        max_batch=service.max_batch,
        taken=TYPES[package.taken],
        dims=", ".join(map(str, package.shape)),
        given=TYPES[torch.float32 if python else package.given],  # model.py converts
        classes=package.classes,
        instances=service.instances,
        kind="KIND_GPU" if gpu else "KIND_CPU",
        delay=service.delay,
    )
    return text + KEPT_ON_GPU if python and gpu else text


def write(
    model: FusedMobileNetV3,
    folder: Path,
    service: Service,
    *,
    size: tuple[int, int],
    floats: bool = False,
    batch: int | None = None,
    verify: bool = True,
) -> None:
    """Write `folder`, whose name is the model's, whole or not at all. Arguments are the command's options.

    Raises ValueError where the folder is there already, the model has no classifier, or the largest batch is more than
    kernels count, and what `mbv3fast.export` does.
    """
    if folder.exists():
        raise ValueError(f"folder: {folder} is there already")
    if not model.num_classes:
        raise ValueError("model: has no classifier, needs one")
    if service.max_batch * size[0] * size[1] >= 2**31:
        raise ValueError(f"max_batch: got {service.max_batch}, needs fewer images of {size[0]}x{size[1]}")
    like, channels = next(model.parameters()), model.config.in_chans
    shape = (channels, *size) if floats else (*size, channels)
    taken = like.dtype if floats else torch.uint8
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as temporary:
        made = Path(temporary, folder.name)
        version = made / "1"
        version.mkdir(parents=True)
        mbv3fast.export(
            model,
            version / "model.pt2",
            size=size,
            batch=batch or service.max_batch,
            uint8=not floats,
            backend=model.backend,
            verify=verify,
        )
        if service.runner == "python":
            shutil.copyfile(Path(__file__).with_name("model.py"), version / "model.py")
        package = Package(shape, taken, model.num_classes, like.dtype, like.device.type)
        (made / "config.pbtxt").write_text(configuration(folder.name, package, service), encoding="utf-8")
        labels = (" ".join(label.split()) for label in class_names(model, model.num_classes))  # each on a line
        (made / "labels.txt").write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
        made.rename(folder)


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@model_options
@click.option("--size", type=click.IntRange(32), nargs=2, help="Height and width; the weights' own by default.")
@click.option("--floats", is_flag=True, help="Take normalised floats [C, H, W]; by default bytes [H, W, C].")
@click.option("--batch", type=click.IntRange(1), help="Images to be fast for; the most by default.")
@click.option("--max-batch", type=click.IntRange(1), default=32, show_default=True, help="The most images of a batch.")
@click.option("--delay", type=click.IntRange(0), default=0, show_default=True, help="Microseconds to wait for others.")
@click.option("--instances", type=click.IntRange(1), default=1, show_default=True, help="Instances, on each device.")
@click.option(
    "--runner",
    type=click.Choice(sorted(RUNNERS)),
    default="python",
    show_default=True,
    help="The server's backend: python, which runs model.py, or pytorch, which takes packages by itself.",
)
@click.option("--no-check", is_flag=True, help="Don't run the package afterwards.")
def main(
    folder: Path,
    size: tuple[int, int] | None,
    floats: bool,
    batch: int | None,
    no_check: bool,
    max_batch: int,
    delay: int,
    instances: int,
    runner: str,
    **model: Any,
) -> None:
    """Write FOLDER, named as the model is to be called, in a model repository."""
    network = load_model(**model)
    service = Service(runner, max_batch, delay, instances)
    try:
        size = size or evaluated_size(network)
        write(network, folder, service, size=size, floats=floats, batch=batch, verify=not no_check)
    except (ExportError, BackendError, UnsupportedError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{folder}: {', '.join(str(file.relative_to(folder)) for file in sorted(folder.rglob('*.*')))}")


if __name__ == "__main__":
    main()
