"""The one place that calls the library's kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mbv3fast.cuda.library import check, library
from mbv3fast.launching import Launch, announce, watched

DTYPES = {torch.float16: 1, torch.bfloat16: 2}  # as mbv3fast.h numbers them
ACTIVATIONS = {None: 0, "relu": 1, "hardswish": 2}
CHANNELS = 8  # of which numbers of channels must be multiples: 16-byte accesses
Tile = Mapping[str, int]  # how a launch is cut into blocks


@dataclass(frozen=True)
class Kernel:
    """A function of the C API, mbv3fast_`name`, and the struct of its arguments."""

    name: str
    args: type[ctypes.Structure]

    @property
    def __name__(self) -> str:  # as a compiled kernel has it
        return self.name


class Part(NamedTuple):
    """One of several launches that a function makes: how many blocks, and the names of its tensors."""

    blocks: int
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def launch(
    kernel: Kernel,
    blocks: int,
    reads: Mapping[str, Tensor | None],
    writes: Mapping[str, Tensor | None],
    sizes: Mapping[str, int],
    *,
    dtype: torch.dtype,
    activation: str | None,
    tile: Tile,
    threads: int = 128,
    parts: Sequence[Part] = (),
    pdl: bool = False,
) -> None:
    """Call `kernel` on tensors and numbers by the names of its struct's fields; tensors without data (meta) are only
    watched. `blocks`: how many it launches, of so many `threads`; parts: its launches, where it makes several.

    pdl: let it start while its predecessor drains. Raises KernelError for what the library refuses.
    """
    read, written = {name: _aligned(tensor) for name, tensor in _given(reads).items()}, _given(writes)
    if watched():
        constants = {**tile, "ACTIVATION": activation, "PDL": pdl, "num_warps": threads // 32}
        given = {**read, **written}
        for part in parts or (Part(blocks, tuple(read), tuple(written)),):
            reads_of, writes_of = ({name: given[name] for name in names} for names in (part.reads, part.writes))
            announce(Launch(kernel, part.blocks, reads_of, writes_of, dict(sizes), constants))
    out = next(iter(written.values()))
    if out.numel() == 0 or out.is_meta:
        return
    args = kernel.args(
        **{name: tensor.data_ptr() for name, tensor in {**read, **written}.items()},
        **sizes,
        **tile,
        dtype=DTYPES[dtype],
        activation=ACTIVATIONS[activation],
        overlapped=pdl,
    )
    call(kernel, args, out.device)


def call(kernel: Kernel, args: ctypes.Structure, device: torch.device) -> None:
    """On the device's current stream. Raises KernelError for what the library refuses."""
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None
    check(getattr(library(), f"mbv3fast_{kernel.name}")(ctypes.byref(args), ctypes.c_void_p(stream)))


def _given(tensors: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _aligned(tensor: Tensor) -> Tensor:
    """As 16-byte accesses want it: a copy where a view begins between two of them."""
    return tensor if tensor.is_meta or tensor.data_ptr() % 16 == 0 else tensor.clone()


def serves(dtype: torch.dtype, *channels: int) -> bool:
    """Whether kernels take tensors of this dtype with so many channels."""
    return dtype in DTYPES and all(count % CHANNELS == 0 for count in channels)


def activates(activation: str | None, gate: str = "hardsigmoid") -> bool:
    """Whether kernels compute this activation, and this gate of squeeze-excite."""
    return gate == "hardsigmoid" and activation in ACTIVATIONS
