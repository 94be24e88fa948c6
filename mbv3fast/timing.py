"""How long calls take: as their caller sees it, and by the GPU's own clock.

Seconds, a list with one for each round, so that medians, spreads and percentiles can be taken of them. The first
WARM_UP rounds are not among them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from mbv3fast.graphs import CudaDriver

Run = Callable[[], Any]
Wait = Callable[[Any], None]
WARM_UP = 3
_FLUSH = 256 * 2**20  # bytes written to empty an L2 cache: more than any has


def waiter(device: torch.device) -> Wait:
    """What waits for the results of calls on `device`: a CPU has computed them when a call returns."""
    return (lambda _: torch.cuda.synchronize(device)) if device.type == "cuda" else (lambda _: None)


def latency_seconds(run: Run, wait: Wait, rounds: int) -> list[float]:
    """Host time from a call to its result, one call after another."""
    return _timed(lambda: wait(run()), rounds)


def stream_seconds(run: Run, wait: Wait, rounds: int, calls: int) -> list[float]:
    """Host time of a call among `calls` that are made one behind another, the last one waited for."""

    def several() -> None:
        for _ in range(calls):
            result = run()
        wait(result)

    return [seconds / calls for seconds in _timed(several, rounds)]


def device_seconds(run: Run, rounds: int, *, cold: bool = False, calls: int = 1) -> list[float]:
    """Time on the current GPU between events before and after `run`, divided by `calls`, those that it makes.

    cold: with nothing of its data in the L2 cache, else with what the call before has left there. Either way the GPU
    has work before the first event, so that its wait for the host isn't counted, unless the host is slower throughout.
    """
    before = _flush() if cold else run
    times = []
    for _ in range(WARM_UP + rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before()
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / calls)
    return times[WARM_UP:]


def replayed(run: Run, calls: int = 1) -> Run:
    """A CUDA graph of `calls` calls, which the host launches as one."""

    def several() -> tuple[Any, ...]:
        for _ in range(calls):
            result = run()
        return (result,)

    driver = CudaDriver()
    replay, (result,) = driver.capture(several, driver.pool())

    def replayed_once() -> Any:
        replay()
        return result

    return replayed_once


def _flush() -> Run:
    """What leaves nothing but zeros in the L2 cache."""
    return torch.empty(_FLUSH, dtype=torch.uint8, device="cuda").zero_


def _timed(call: Run, rounds: int) -> list[float]:
    times = []
    for _ in range(WARM_UP + rounds):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return times[WARM_UP:]
