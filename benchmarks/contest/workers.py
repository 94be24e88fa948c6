"""A process for each contender, as a user's program is one: what hangs or crashes there costs its time limit, and no
other contender anything; what its allocator, its caches and its compiler keep stays its own.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from benchmarks.contest.cases import Case
from benchmarks.contest.contenders import Contender, Ready
from benchmarks.processes import die_with_parent
from mbv3fast.cli.options import usable_cores
from mbv3fast.timing import IN_A_GRAPH, Run, device_seconds, latency_seconds, replayed, stream_seconds

View = Literal["latency", "stream", "device warm", "device cold"]
IN_A_STREAM = 20  # calls made one behind another
_END = 10  # seconds for a killed process to be gone


class RefusedError(Exception):
    """Why a contender isn't timed."""


class Prepared(NamedTuple):
    """What a contender computed, and the seconds that it took to be ready, its first result included."""

    result: Tensor
    seconds: float
    views: tuple[View, ...]


class Worker:
    """The near end of a contender's process. All methods raise RefusedError; the process is then gone."""

    def __init__(self, contender: Contender, device: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._near, far = context.Pipe()
        self._process = context.Process(target=_serve, args=(far, contender, device), daemon=True)
        self._process.start()
        far.close()

    def begin(self, case: Case, shared: Path) -> None:
        """Make it ready for a case, whose shared part is in a folder; `prepared` waits for that."""
        self._send(("prepare", case, shared))

    def prepared(self, deadline: float, limit: float) -> Prepared:
        """Until `deadline` of time.monotonic, which is `limit` seconds after it might begin."""
        left = max(0.0, deadline - time.monotonic())
        return Prepared(*self._receive(left, f"not ready in {limit:g} s"))

    def seconds(self, view: View, rounds: int, limit: float) -> list[float]:
        """Of each of so many calls."""
        self._send(("time", view, rounds))
        times: list[float] = self._receive(limit)
        return times

    def result(self, limit: float) -> Tensor:
        """Of the last call that was timed."""
        self._send(("result",))
        result: Tensor = self._receive(limit)
        return result

    def close(self) -> None:
        self._near.close()
        with suppress(OSError, TypeError):  # it has no group yet, or no number any more
            os.killpg(self._process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        self._process.kill()
        self._process.join(_END)

    def _send(self, message: tuple[Any, ...]) -> None:
        try:
            self._near.send(message)
        except OSError:
            raise self._refused("its process has ended") from None

    def _receive(self, limit: float, too_late: str = "") -> Any:
        try:
            if not self._near.poll(limit):
                raise self._refused(too_late or f"no answer in {limit:g} s")
            kind, answer = self._near.recv()
        except (EOFError, OSError):
            self._process.join(_END)
            raise self._refused(f"its process ended with exit code {self._process.exitcode}") from None
        except RefusedError:
            raise
        except Exception as error:  # of what can't be unpickled
            raise self._refused(f"its answer can't be read: {error!r}"[:300]) from None
        if kind == "failed":
            raise self._refused(answer)
        return answer

    def _refused(self, reason: str) -> RefusedError:
        self.close()
        return RefusedError(reason)


def _serve(connection: Connection, contender: Contender, device: str) -> None:
    """Answer what a Worker sends, until it is closed."""
    die_with_parent()
    os.setpgid(0, 0)  # so that what it starts ends with it
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(usable_cores())
    torch.backends.cudnn.benchmark = True  # the fastest of cuDNN's kernels, not the likeliest
    torch.backends.cudnn.allow_tf32 = False  # float32 is float32, for everybody
    session = _Session(contender, torch.device(device))
    with torch.inference_mode():
        while True:
            try:
                kind, *arguments = connection.recv()
            except EOFError:
                return
            try:
                answer = ("done", getattr(session, kind)(*arguments))
            except Exception as error:  # whatever a peer raises is why it isn't timed
                answer = ("failed", f"{type(error).__name__}: {error}"[:500])
            connection.send(answer)


class _Session:
    """What a process knows between two messages."""

    def __init__(self, contender: Contender, device: torch.device) -> None:
        self._contender, self._device = contender, device
        self._ready: Ready | None = None
        self._last: Any = None
        self._replays: dict[View, Run] = {}

    def prepare(self, case: Case, shared: Path) -> tuple[Tensor, float, tuple[View, ...]]:
        self._ready = self._last = None
        self._replays.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        case.adopt(shared)
        begin = time.perf_counter()
        with torch.inference_mode(False), torch.no_grad():  # since edits of what is made there can't be seen
            self._ready = ready = self._contender.prepare(case, self._device)
        self._last = ready.run()
        ready.wait(self._last)
        seconds = time.perf_counter() - begin
        views: tuple[View, ...] = ("latency",) if self._device.type == "cpu" else ("latency", "stream")
        return self.result(), seconds, views + (("device warm", "device cold") if ready.by_events else ())

    def result(self) -> Tensor:
        assert self._ready is not None
        result = self._ready.fetch(self._last)
        dense = isinstance(result, Tensor) and result.layout is torch.strided and not result.is_nested
        if not dense or result.device.type != "cpu" or result.is_complex() or result.is_quantized:
            raise TypeError(f"its result is a {type(result).__name__}, needs a dense tensor of numbers on the CPU")
        return result.detach().clone()  # sending moves a tensor's memory, whose address may be bound

    def time(self, view: View, rounds: int) -> list[float]:
        ready = self._ready
        assert ready is not None

        def run() -> Any:
            self._last = ready.run()
            return self._last

        if view == "latency":
            return latency_seconds(run, ready.wait, rounds)
        if view == "stream":
            return stream_seconds(run, ready.wait, rounds, IN_A_STREAM)
        cold = view == "device cold"
        if not ready.graphed:
            return device_seconds(run, rounds, cold=cold)
        calls = 1 if cold else IN_A_GRAPH
        if view not in self._replays:
            self._replays[view] = replayed(ready.run, calls)
        times = device_seconds(self._replays[view], rounds, cold=cold, calls=calls)
        self._last = self._replays[view]()
        return times
