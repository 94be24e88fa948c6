"""State dicts from files. Nothing in a file is ever executed."""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from mbv3fast.atomic import replacing
from mbv3fast.description import METADATA_KEY, Description, read_description
from mbv3fast.weights.errors import WeightsError

TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt", ".tar")
_WRAPPERS = ("state_dict", "model", "model_state_dict")
_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel and torch.compile


def read_file(path: Path) -> tuple[Mapping[str, Any], Description | None]:
    """The state dict of a .safetensors or .pth file and, where it is ours, its description.

    WeightsError where the file is absent, truncated, holds pickled code, or is of another kind.
    """
    if not path.is_file():
        raise WeightsError(f"weights: {path} is not a file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path), None
    raise WeightsError(f"weights: {path} is neither .safetensors nor one of {', '.join(TORCH_SUFFIXES)}")


def write_file(path: Path, state: Mapping[str, Tensor], description: Description) -> None:
    """Write .safetensors with `description` in its metadata, whole or not at all."""
    metadata = {"format": "pt", METADATA_KEY: description.to_json()}
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in state.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata))


def unwrap(state: Any) -> tuple[Mapping[str, Tensor], Description | None]:
    """The state dict inside a training checkpoint, without wrappers' key prefixes, and its description if it is ours.

    WeightsError names the first key whose value is no tensor that weights can be made of.
    """
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state:
        advice = "; pass its state_dict()" if isinstance(state, torch.nn.Module) else ""
        raise WeightsError(f"weights: got {type(state).__name__}, needs a non-empty state dict{advice}")
    averaged = {key: value for key, value in state.items() if key != "n_averaged"}  # of torch.optim.swa_utils
    prefix = ""
    while wrapping := next((p for p in _PREFIXES if all(str(key).startswith(prefix + p) for key in averaged)), None):
        prefix += wrapping
    try:
        description = read_description(state, prefix)
    except ValueError as error:
        raise WeightsError(f"weights: {error}") from error
    if prefix:
        state = {key.removeprefix(prefix): value for key, value in averaged.items()}
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise WeightsError(f"weights: {key!r} is a {type(value).__name__}, needs a tensor")
        counter = isinstance(key, str) and key.endswith("num_batches_tracked")
        if not (value.dtype.is_floating_point or counter) or value.layout != torch.strided or value.is_meta:
            got = f"{value.dtype}, {value.layout}, on {value.device}"
            raise WeightsError(f"weights: {key} is {got}; needs dense floating-point numbers")
    return state, description


def _read_safetensors(path: Path) -> tuple[Mapping[str, Tensor], Description | None]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        text = metadata.get(METADATA_KEY)
        return state, None if text is None else Description.from_json(text)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"weights: {path} is no whole safetensors file (truncated or damaged?): {error}") from error


def _read_torch(path: Path) -> Mapping[str, Any]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|Unsupported (?:class|operand)) ([A-Za-z_][\w.]*\.\w+)", str(error))
        if found is None:
            raise WeightsError(f"weights: {path} holds something other than tensors, or is damaged") from error
        raise WeightsError(
            f"weights: {path} holds pickled code ({found[1]}), which is not run; "
            "save model.state_dict() instead, best as safetensors"
        ) from error
    except Exception as error:  # damaged bytes make torch.load raise nearly anything
        raise WeightsError(f"weights: {path} can't be read (truncated or damaged?): {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    return (str(error).splitlines() or [""])[0] or type(error).__name__
