"""A model as one op, so that torch.compile leaves it whole to its engine, which is as fast and sees new weights."""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch
from torch import Tensor, nn

_LIBRARY = torch.library.Library("mbv3fast", "FRAGMENT")
_MODELS: weakref.WeakValueDictionary[int, nn.Module] = weakref.WeakValueDictionary()
_HANDLES = itertools.count(1)


def register(model: nn.Module) -> int:
    """A handle of `model` for `call`, as long as the model lives."""
    handle = next(_HANDLES)
    _MODELS[handle] = model
    return handle


def call(handle: int, x: Tensor, outputs: int, dtype: torch.dtype) -> Tensor:
    """What the model of `handle` makes of `x`, [N, outputs] of `dtype`, as one op."""
    return torch.ops.mbv3fast.network(x, handle, outputs, dtype)


def compiles_around(x: Tensor) -> bool:
    """Whether torch.compile, and not torch.export, is tracing a call with a tensor of a GPU."""
    return torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting() and x.device.type == "cuda"


def _network(x: Tensor, handle: int, _outputs: int, _dtype: torch.dtype) -> Tensor:
    with torch.no_grad():
        return _MODELS[handle](x)


def _fake(x: Tensor, _handle: int, outputs: Any, dtype: torch.dtype) -> Tensor:
    return x.new_empty((x.shape[0], outputs), dtype=dtype)


_LIBRARY.define(
    "network(Tensor x, int handle, int outputs, ScalarType dtype) -> Tensor",
    tags=(torch.Tag.cudagraph_unsafe,),  # which would bake in today's weights; the engine has graphs of its own
)
for _key in ("CPU", "CUDA"):
    _LIBRARY.impl("network", _network, _key)
torch.library.register_fake("mbv3fast::network", _fake, lib=_LIBRARY)
