"""What CPU users get: the folded network against eager torchvision, same weights and inputs, in one run.

    pytest benchmarks/bench_fallback.py --benchmark-only

Outputs are compared before anything is timed. Each network has a process of its own, as a user's has: in a shared
one the allocator keeps for the one what the other has mapped. They take turns, some forwards each, and time
themselves. The medians stand in the headings; the rows are ours again, with the way to its process and back.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch
from torch import Tensor

import mbv3fast
from tests.networks import randomise
from tests.peers import peer

TURNS, WARM_UP, ROUNDS = 6, 3, 10


def forwards(variant: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each contender's forward on the same randomised weights, in every process."""
    torch.manual_seed(0)
    peer_model = randomise(getattr(peer("torchvision").models, f"mobilenet_v3_{variant}")())
    build = mbv3fast.large if variant == "large" else mbv3fast.small
    return {"torchvision": peer_model, "mbv3fast": build(weights=peer_model.state_dict()).eval()}


def serve(connection: Connection, contender: str, variant: str, batch: int) -> None:
    """Send the contender's output; then for every message run one forward and send its milliseconds."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    forward = forwards(variant)[contender]
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        connection.send(forward(x).numpy())
        while connection.recv():
            begin = time.perf_counter()
            forward(x)
            connection.send((time.perf_counter() - begin) * 1e3)


@contextmanager
def alone(*what: Any) -> Iterator[Connection]:
    """The near end of a `serve` in a fresh process."""
    context = multiprocessing.get_context("spawn")
    near, far = context.Pipe()
    process = context.Process(target=serve, args=(far, *what), daemon=True)
    process.start()
    far.close()
    try:
        yield near
        near.send(False)
        process.join()
    finally:
        process.kill()


def milliseconds(connection: Connection) -> float:
    connection.send(True)
    elapsed: float = connection.recv()
    return elapsed


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("variant", ["large", "small"])
def bench_fallback(benchmark: Any, variant: str, batch: int) -> None:
    with alone("torchvision", variant, batch) as eager, alone("mbv3fast", variant, batch) as ours:
        wanted, got = (torch.from_numpy(end.recv()) for end in (eager, ours))
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4)
        times: dict[Connection, list[float]] = {eager: [], ours: []}
        for _ in range(TURNS):
            for end, taken in times.items():
                taken += [milliseconds(end) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
        benchmark.pedantic(milliseconds, (ours,), rounds=ROUNDS, warmup_rounds=WARM_UP)
    eager_ms, our_ms = (statistics.median(taken) for taken in times.values())
    benchmark.stats.group = (
        f"{variant} batch {batch} fp32: {our_ms:.2f} ms, eager torchvision {eager_ms:.2f}, {eager_ms / our_ms:.2f}x"
    )
