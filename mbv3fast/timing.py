"""How long calls take: as their caller sees it, and by the GPU's own clock.

Seconds, a list with one for each round, so that medians, spreads and percentiles can be taken of them. Rounds to warm
up, at least WARM_UP of them and for WARM_UP_SECONDS, come before and are not among them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from mbv3fast.graphs import CudaDriver
from mbv3fast.torch_state import occupy_gpu

Run = Callable[[], Any]
Wait = Callable[[Any], None]
WARM_UP = 3
WARM_UP_SECONDS = 0.05  # for clocks to rise
IN_A_GRAPH = 20  # calls
_MARGIN = 2  # times the host's longest launch: the next may be longer
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

    cold: with nothing of its data in the L2 cache, else with what the call before has left there. The GPU is kept busy
    before the first event for as long as the host takes to launch, so that what it waits for isn't the host.
    """
    before = _flush() if cold else run
    launching = max(_warmed_up(run))
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before()
        occupy_gpu(_MARGIN * launching)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / calls)
    return times


def graph_seconds(run: Run, rounds: int) -> list[float]:
    """`device_seconds` of a call in a CUDA graph of IN_A_GRAPH in a row, where the host has no part."""
    return device_seconds(replayed(run, IN_A_GRAPH), rounds, calls=IN_A_GRAPH)


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
    _warmed_up(call)
    return [_seconds(call) for _ in range(rounds)]


def _warmed_up(call: Run) -> list[float]:
    """Host seconds of calls whose times don't count, but for the first, which may compile."""
    end = time.perf_counter() + WARM_UP_SECONDS
    call()
    times = [_seconds(call) for _ in range(WARM_UP - 1)]
    while time.perf_counter() < end:
        times.append(_seconds(call))
    return times


def _seconds(call: Run) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
