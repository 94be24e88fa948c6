"""Launches of kernels, whoever compiled them: how many programs, on which tensors; who wants to see them does, be that
a watcher or one of PyTorch's compilers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch


class Launch(NamedTuple):
    """A kernel, how many programs of it (CTAs), by the names of its arguments the tensors they read and write and the
    sizes they are told, and its compile-time constants with the launch configuration; other arguments are None.

    kernel: what has its `__name__`.
    """

    kernel: Any
    grid: int
    reads: dict[str, torch.Tensor]
    writes: dict[str, torch.Tensor]
    sizes: dict[str, int]
    constants: dict[str, Any]


class Work(NamedTuple):
    """programs: CTAs. issued: bytes that the unmasked lanes of all loads and stores name, each program's counted apart;
    bytes, not the sectors of 32 that memory is moved in.

    serial: trips to memory that one program makes one after another. A trip ends where a loop goes round, taps that are
    unrolled together being one round, where a loop ends, and where a sum outside of loops wants what was loaded; other
    code before a loop loads with its first round.
    dots: multiply-adds of `tl.dot`, fmas: of sums in float32, both as launched: blocks whole, idle lanes included.
    Activations, scaling and normalisation are in neither. halo: pixels of the input that programs read, each program's
    distinct ones once, over the input's pixels; 1 where there is no window. repeated: bytes of `issued` that the same
    program has read before, where its windows overlap.
    """

    programs: int
    serial: int
    issued: int
    dots: int = 0
    fmas: int = 0
    halo: float = 1.0
    repeated: int = 0


def issued_bytes(launch: Launch, **elements: int) -> int:
    """Bytes of the elements that are named of each tensor. Raises KeyError for a tensor that is not counted."""
    tensors = {**launch.reads, **launch.writes}
    return sum(elements[name] * tensor.itemsize for name, tensor in tensors.items())


Watcher = Callable[[Launch], None]
_watchers: ContextVar[tuple[Watcher, ...]] = ContextVar("watchers", default=())


@contextmanager
def watch_launches(watcher: Watcher) -> Iterator[None]:
    """Within, in this thread, `watcher` sees every launch beforehand."""
    token = _watchers.set((*_watchers.get(), watcher))
    try:
        yield
    finally:
        _watchers.reset(token)


def watched() -> bool:
    """Whether anybody wants to see launches, which cost time to describe."""
    return bool(_watchers.get())


_traced: ContextVar[bool] = ContextVar("traced", default=False)


@contextmanager
def tracing() -> Iterator[None]:
    """Within, in this thread, Triton's launches are written into the graph that PyTorch is tracing, and not made."""
    token = _traced.set(True)
    try:
        yield
    finally:
        _traced.reset(token)


def traced() -> bool:
    """Whether launches are written down by PyTorch."""
    return _traced.get()


def announce(launch: Launch) -> None:
    """Let all who watch see it."""
    for watcher in _watchers.get():
        watcher(launch)
