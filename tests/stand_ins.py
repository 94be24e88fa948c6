"""Stand-ins for what these machines lack: a GPU that captures graphs, and the kernels that run on it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from mbv3fast import freshness, graphs, service, serving
from mbv3fast.backend import SERVED_DTYPES, Decision, Request
from mbv3fast.graphs import Outputs
from mbv3fast.ops import OPS
from mbv3fast.selfcheck import Verdict

CPU = torch.device("cpu")


def in_threads(work: Callable[[int], Any], count: int) -> None:
    """`work(i)` for each i below `count`, at once; what one raises is raised."""
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))


class StandIn:
    """A GPU of one stream for each thread that asks; replays run the captured function again, into the same tensors.

    A pool is the list of its graphs' outputs: what one graph computes spoils the outputs of the others.
    """

    def __init__(self) -> None:
        self.captures: list[Any] = []
        self.settled = 0
        self.is_capturing = False
        self.streams = threading.local()

    def stream(self, device: torch.device) -> int:
        assert device == CPU
        return getattr(self.streams, "number", 0)

    def capturing(self) -> bool:
        return self.is_capturing

    def pool(self) -> list[Outputs]:
        return []

    def capture(self, run: Callable[[], Outputs], pool: Any) -> tuple[Callable[[], None], Outputs]:
        def compute() -> Outputs:
            for output in (output for others in pool for output in others if others is not outputs):
                output.fill_(torch.nan)
            return run()

        outputs: Outputs = ()
        compute()
        outputs = compute()
        pool.append(outputs)
        self.captures.append(pool)

        def replay() -> None:
            for kept, new in zip(outputs, compute(), strict=True):
                kept.copy_(new)

        return replay, outputs

    def settle(self, device: torch.device) -> None:
        assert device == CPU
        self.settled += 1


def references_for_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reference of every op do the work of its kernels."""

    def stand_in(op: Any) -> Callable[..., Any]:
        kernels = op.run

        def run(**given: Any) -> Any:
            if given["x"].is_meta:  # where a plan counts what kernels do
                return kernels(**given)
            results = op.reference(**{name: value for name, value in given.items() if name != "target"})
            return results if len(results) > 1 else results[0]

        return run

    for op in OPS.values():
        monkeypatch.setattr(op, "run", stand_in(op))


def decide(request: Request, _device: torch.device, dtype: torch.dtype) -> Decision:
    """As on a GPU that our kernels serve."""
    if dtype not in SERVED_DTYPES:
        return Decision(False, f"{dtype} is not served")
    return Decision(True, "Triton: fused kernels", "triton", request.name == "triton")


def stand_in_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """As if this CPU were a GPU that Triton serves, whose self-check has passed; what captures there."""
    driver = StandIn()
    references_for_kernels(monkeypatch)
    monkeypatch.setattr(serving, "decide", decide)
    monkeypatch.setattr(service, "judge", lambda *_: Verdict(""))
    monkeypatch.setattr(graphs, "CudaDriver", lambda: driver)
    monkeypatch.setattr(freshness, "_probes", lambda _: [])  # no GPU is asked for values
    return driver
