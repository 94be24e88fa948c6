"""What a model refuses: inputs that it can't take, state dicts that don't fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn

from mbv3fast.config import NetworkConfig
from mbv3fast.description import read_description
from mbv3fast.layers import first_conv
from mbv3fast.preprocess import channels_first
from mbv3fast.torch_state import autocast_enabled, is_traced, rewrites_state_dicts

MIN_SIZE = 32
_WIDTHS_DIFFER = (
    "; the squeeze-excite widths differ: se_divisor=1 is the seed's (C // 4), 8 torchvision's and timm's; "
    "build with the other, or with weights=, which follows the checkpoint"
)


def check_input(x: Tensor, features: nn.Module) -> None:
    """Raise ValueError unless `x` is [N >= 1, C, H >= 32, W >= 32] as `features` take it, TypeError for no tensor.

    Bytes may be [N, H, W, C] too, and need not be of the weights' dtype.
    """
    if not isinstance(x, (Tensor, torch.fx.Proxy)):
        raise TypeError(f"x: got {type(x).__name__}, needs a tensor [N, C, H, W]")
    if is_traced(x):
        return  # its sizes may be symbols
    if x.dim() != 4:
        raise ValueError(f"x: got shape {tuple(x.shape)}, needs 4 dimensions [N, C, H, W]")
    stem = first_conv(features)
    wanted = (stem.in_channels if stem else 0) or x.shape[1]  # 0: lazy, about to learn it
    is_bytes = x.dtype == torch.uint8
    batch, channels, height, width = channels_first(x, wanted).shape if is_bytes else x.shape
    if channels != wanted:
        hint = "; the layout is NCHW" if x.shape[3] == wanted else ""
        raise ValueError(f"x: got {channels} channels in shape {tuple(x.shape)}, needs {wanted}{hint}")
    if batch < 1:
        raise ValueError(f"x: got an empty batch {tuple(x.shape)}, needs N >= 1")
    if min(height, width) < MIN_SIZE:
        raise ValueError(f"x: got height {height}, width {width}, needs at least {MIN_SIZE} of each")
    if stem is not None and stem.weight.device != x.device:
        raise ValueError(f"x: is on {x.device}, the model on {stem.weight.device}; move one of them")
    if stem is not None and not is_bytes and stem.weight.dtype != x.dtype and not autocast_enabled(x.device):
        raise ValueError(f"x: got dtype {x.dtype}, the model's weights are {stem.weight.dtype}; convert one of them")


def refuse_misfit(model: nn.Module, config: NetworkConfig, state_dict: Mapping[str, Any], assign: bool) -> None:
    """Raise RuntimeError, with the first key that is wrong and what to do, where a strict load can't fit."""
    if not isinstance(state_dict, Mapping):
        raise TypeError(f"load_state_dict: got {type(state_dict).__name__}, needs a state dict")
    if not rewrites_state_dicts(model):  # else only PyTorch's own check, after the hooks, can know
        _refuse_keys_and_shapes(model.state_dict(), state_dict, assign)
    _refuse_another_function(config, state_dict)


def _refuse_keys_and_shapes(own: Mapping[str, Any], state_dict: Mapping[str, Any], assign: bool) -> None:
    for key, tensor in own.items():
        if key not in state_dict and _filled_in(key, state_dict):
            continue
        if key not in state_dict:
            raise RuntimeError(f"load_state_dict: {key} is missing; other projects' names load through `weights=`")
        if not isinstance(tensor, Tensor):
            continue  # extra state of a user's module, which knows what it takes
        given = state_dict[key]
        if not isinstance(given, Tensor):
            raise RuntimeError(f"load_state_dict: {key} is a {type(given).__name__}, needs a tensor")
        if given.is_meta and not tensor.is_meta:
            raise RuntimeError(f"load_state_dict: {key} is on meta, it has no data")
        if tensor.is_meta and not given.is_meta and not assign:
            raise RuntimeError(f"load_state_dict: the model's {key} is on meta; use assign=True")
        got, needed = tuple(given.shape), tuple(tensor.shape)
        if got != needed and (got, needed) != ((1,), ()):  # as old checkpoints have their counters
            advice = _WIDTHS_DIFFER if ".fc1." in key or ".fc2." in key else ""
            raise RuntimeError(f"load_state_dict: {key} has shape {got}, the model needs {needed}{advice}")
    for key in state_dict:
        if key not in own:
            raise RuntimeError(f"load_state_dict: {key} is not a key of this model")


def _filled_in(key: str, state_dict: Mapping[str, Any]) -> bool:
    """Whether PyTorch supplies this missing key: counters of batch norms saved before version 2, or as a plain dict."""
    module, _, name = key.rpartition(".")
    version = (getattr(state_dict, "_metadata", None) or {}).get(module, {}).get("version")
    return name == "num_batches_tracked" and (version is None or version < 2)


def _refuse_another_function(config: NetworkConfig, state_dict: Mapping[str, Any]) -> None:
    """Equal shapes may belong to another eps, padding or activation, which a state dict of ours says."""
    try:
        described = read_description(state_dict)
    except ValueError:
        return  # of a model that its user changed beyond what a description can say
    for field in ("bn_eps", "tf_same_padding", "activation", "output_stride"):
        ours = getattr(config, field)
        theirs = getattr(described.config, field) if described else ours
        if ours != theirs:
            raise RuntimeError(
                f"load_state_dict: these weights belong to {field}={theirs}, the model has {ours}; "
                "build it with weights=, which follows the checkpoint"
            )
