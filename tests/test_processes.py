"""Threads, forks and interrupts around a model that is served."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

import mbv3fast
from mbv3fast import freshness, serving
from mbv3fast.fast import FusedMobileNetV3
from tests.networks import digit_tiles, trained_small


@torch.inference_mode(False)
def model() -> FusedMobileNetV3:
    return copy.deepcopy(trained_small())


def images() -> Tensor:
    return digit_tiles()[:4]


@pytest.mark.parametrize("built", [False, True])
def test_threads_get_equal_answers(built: bool) -> None:
    subject = model()
    batches = [digit_tiles()[start : start + 3] for start in range(0, 36, 3)]
    with torch.inference_mode():
        expected = [model()(x) for x in batches]
        if built:
            subject(batches[0])

    def answer(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return subject(x)

    with ThreadPoolExecutor(6) as pool:
        for _ in range(3):
            assert all(map(torch.equal, pool.map(answer, batches), expected))


@pytest.mark.parametrize("lock", [serving._BUILDING, freshness._WATCHING])
def test_a_forked_child_is_not_stopped_by_its_parents_locks(lock: threading.Lock) -> None:
    """As where a DataLoader forks while another thread builds an engine."""
    subject, x = model(), images()
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            done.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(60)
    child = multiprocessing.get_context("fork").Process(target=answer_once, args=(subject, x))
    child.start()
    child.join(30)
    done.set()
    holder.join()
    stuck = child.is_alive()
    child.kill()
    assert (stuck, child.exitcode) == (False, 0)


def answer_once(subject: FusedMobileNetV3, x: Tensor) -> None:
    with torch.inference_mode():
        subject(x)


def test_an_interrupt_leaves_the_locks_free() -> None:
    """Signal handlers that raise, as Ctrl-C's does, at whatever instruction."""

    class StopError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StopError

    subject = mbv3fast.small(features_only=True, out_indices=[0]).eval()
    before = signal.signal(signal.SIGALRM, stop)
    try:
        for attempt in range(300):
            with contextlib.suppress(StopError):
                signal.setitimer(signal.ITIMER_REAL, 2e-5 + attempt * 5e-7)
                while True:
                    subject.repack()
            assert not serving._BUILDING.locked()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
