"""Options that several commands share, and the model that they describe."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
import torch

from mbv3fast.backend import BACKENDS, BackendError, decide, requested
from mbv3fast.config import SOURCES
from mbv3fast.factory import load
from mbv3fast.fast import FusedMobileNetV3
from mbv3fast.preprocess import PIL_MODES

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Command = TypeVar("Command", bound=Callable[..., Any])


def model_options(command: Command) -> Command:
    """--weights, --model, --source, --device, --dtype, --backend."""
    options = [
        click.option(
            "--weights",
            default="DEFAULT",
            show_default=True,
            help="A .safetensors or .pth file; DEFAULT, IMAGENET1K_V1 or _V2 (torchvision's, downloaded once); "
            "hf-hub:timm/NAME; or digits, which the package carries.",
        ),
        click.option(
            "--model",
            type=click.Choice(["large", "small"]),
            default="large",
            show_default=True,
            help="Whose published weights a name means. A file says itself.",
        ),
        click.option(
            "--source",
            type=click.Choice(sorted(SOURCES)),
            help="Whose weights a file holds, where its keys leave a doubt (timm's).",
        ),
        click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …; auto takes a GPU."),
        click.option("--dtype", type=click.Choice(sorted(DTYPES)), default="float32", show_default=True),
        click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True),
    ]
    for option in reversed(options):
        command = option(command)
    return command


def check_out(out: Path, suffixes: Iterable[str], hint: str = "--out") -> None:
    """Raise click.BadParameter, before any work is done, where `out` can't become a file of these suffixes."""
    if out.suffix not in suffixes:
        raise click.BadParameter(f"{out}: needs the suffix {', '.join(suffixes)}", param_hint=hint)
    if not out.absolute().parent.is_dir():
        raise click.BadParameter(f"{out}: its folder does not exist", param_hint=hint)
    if out.is_dir():
        raise click.BadParameter(f"{out}: is a folder", param_hint=hint)


def usable_cores() -> int:
    """The cores that this process may run on, which a container's machine may have many times over."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_device(name: str) -> torch.device:
    """`name` as a device that is there; "auto" is a GPU if there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise RuntimeError("needs cpu, cuda, cuda:N or auto")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise click.BadParameter(f"{name!r}: {str(error).splitlines()[0]}", param_hint="--device") from error
    return device


def load_model(weights: str, model: str, source: str | None, device: str, dtype: str, backend: str) -> FusedMobileNetV3:
    """The model that the options describe, in eval mode; a clean error message where there is none."""
    place = parse_device(device)
    try:
        decide(requested(backend), place, DTYPES[dtype])  # before anything is downloaded
        loaded = load(weights, variant="small" if model == "small" else "large", source=source, backend=backend)
    except (ValueError, BackendError) as error:  # WeightsError is a ValueError
        raise click.ClickException(as_options(str(error))) from error
    channels = len(loaded.preprocess.mean)
    if channels not in PIL_MODES:
        raise click.ClickException(f"{weights} is for input of {channels} channels, which image files don't have")
    if loaded.preprocess.crop is None:
        raise click.ClickException(f"{weights} takes images of any size, which make no batch; set preprocess.crop")
    return loaded.to(place, DTYPES[dtype]).eval()


def evaluated_size(model: FusedMobileNetV3) -> tuple[int, int]:
    """Height and width of the images that the weights of a model of `load_model` were evaluated on."""
    crop = model.preprocess.crop
    assert crop is not None, "`load_model` refuses that"
    return crop, crop


def as_options(message: str) -> str:
    """An error's advice on arguments as advice on options, of which there are fewer."""
    message = message.replace(", or give bn_eps= and tf_same_padding=", "")
    return re.sub(r"\b(weights|source)=(?P<value>[\"\w]?)", _as_option, message)


def _as_option(match: re.Match[str]) -> str:
    value = match["value"]
    return f"--{match[1]} {value}" if value else f"--{match[1]}"
