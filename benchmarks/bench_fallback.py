"""What CPU users get: the folded network against eager torchvision, same weights and inputs, in one run.

    pytest benchmarks/bench_fallback.py --benchmark-only

Outputs are compared before anything is timed. Each network has a process of its own, as a user's has: in a shared
one the allocator keeps for the one what the other has mapped. The rows are ours; eager torchvision's median and the
ratio stand in their headings.
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

ROUNDS, WARM_UP = 60, 10


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
    with alone("torchvision", variant, batch) as eager:
        wanted = torch.from_numpy(eager.recv())
        eager_ms = [milliseconds(eager) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
    with alone("mbv3fast", variant, batch) as ours:
        torch.testing.assert_close(torch.from_numpy(ours.recv()), wanted, rtol=1e-3, atol=1e-4)
        benchmark.pedantic(milliseconds, (ours,), rounds=ROUNDS, warmup_rounds=WARM_UP)
    median = statistics.median(eager_ms)
    ratio = median / (benchmark.stats.stats.median * 1e3)
    benchmark.stats.group = f"{variant} batch {batch} fp32, eager torchvision {median:.2f} ms: {ratio:.2f}x"
