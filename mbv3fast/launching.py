"""Launches of kernels, whoever compiled them: how many programs, on which tensors; who wants to see them does."""

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


def announce(launch: Launch) -> None:
    """Let all who watch see it."""
    for watcher in _watchers.get():
        watcher(launch)
