"""Timers: what is timed, what isn't, how often; the GPU's events and graphs are stand-ins with clocks of their own."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from mbv3fast import timing
from mbv3fast.timing import WARM_UP, device_seconds, latency_seconds, replayed, stream_seconds, waiter
from tests.stand_ins import StandIn


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As few rounds to warm up as there are."""
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0)


class Gpu:
    """A clock in milliseconds, and what happens on it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def works(self, what: str, milliseconds: float) -> Any:
        def work() -> str:
            self.log.append(what)
            self.now += milliseconds
            return what

        return work

    def event(self, enable_timing: bool) -> Event:
        assert enable_timing
        return Event(self)


class Event:
    def __init__(self, gpu: Gpu) -> None:
        self.gpu, self.at = gpu, -1.0

    def record(self) -> None:
        self.at = self.gpu.now
        self.gpu.log.append("event")

    def synchronize(self) -> None:
        self.gpu.log.append("wait")

    def elapsed_time(self, other: Event) -> float:
        return other.at - self.at


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    gpu = Gpu()
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(timing, "_flush", lambda: gpu.works("flush", 85))
    monkeypatch.setattr(timing, "occupy_gpu", lambda seconds: gpu.works("busy", 1e3 * seconds)())
    return gpu


def test_latency_is_from_the_call_to_its_result() -> None:
    waited: list[Any] = []

    def wait(result: Any) -> None:
        waited.append(result)
        time.sleep(0.01)

    results = iter(range(100))
    times = latency_seconds(lambda: next(results), wait, 4)
    assert waited == list(range(WARM_UP + 4)), "each result is waited for"
    assert len(times) == 4
    assert min(times) >= 0.01


def test_a_stream_waits_for_its_last_call_alone() -> None:
    waited: list[Any] = []
    results = iter(range(1000))
    times = stream_seconds(lambda: next(results), waited.append, 3, calls=10)
    assert waited == [10 * turn + 9 for turn in range(WARM_UP + 3)]
    assert len(times) == 3


@pytest.mark.parametrize(("cold", "before"), [(False, "run"), (True, "flush")])
def test_the_device_is_busy_before_the_first_event(clock: Gpu, cold: bool, before: str) -> None:
    times = device_seconds(clock.works("run", 2), 5, cold=cold)
    assert times == pytest.approx([0.002] * 5)
    assert clock.log == ["run"] * WARM_UP + [before, "busy", "event", "run", "event", "wait"] * 5


def test_the_device_is_busy_for_longer_than_the_host_takes(clock: Gpu) -> None:
    work = clock.works("run", 2)

    def slow_to_launch() -> None:
        time.sleep(0.01)
        work()

    device_seconds(slow_to_launch, 1)
    idle = clock.now - 2 * (WARM_UP + 2)  # milliseconds
    assert idle > 15


def test_calls_within_a_run_are_divided(clock: Gpu) -> None:
    assert device_seconds(clock.works("run", 2), 1, calls=20) == pytest.approx([0.0001])


def test_warming_up_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "WARM_UP_SECONDS", 0.1)
    calls = iter(range(10**6))
    times = latency_seconds(lambda: (next(calls), time.sleep(0.01)), lambda _: None, 2)
    assert len(times) == 2
    assert 7 <= next(calls) <= 12


def test_a_graph_replays_so_many_calls_and_gives_the_last_ones_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "CudaDriver", StandIn)
    calls: list[torch.Tensor] = []

    def run() -> torch.Tensor:
        calls.append(torch.full((1,), float(len(calls))))
        return calls[-1]

    replay = replayed(run, calls=5)
    captured = len(calls)
    result = replay()
    assert len(calls) - captured == 5
    assert torch.equal(result, calls[-1])


def test_a_cpu_needs_no_waiting() -> None:
    assert waiter(torch.device("cpu"))(None) is None
