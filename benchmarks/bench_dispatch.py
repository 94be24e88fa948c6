"""What a call costs the host: of a served forward, of the check for stale weights, of a start.

    pytest benchmarks/bench_dispatch.py --benchmark-only

Without a GPU the replay is a stand-in that does nothing, so the first rows are all host time and no kernel's; with one
they are calls that aren't waited for. Rows say which.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mbv3fast
from mbv3fast import graphs
from mbv3fast.fast import FusedMobileNetV3
from mbv3fast.graphs import Outputs
from tests.stand_ins import StandIn, stand_in_for_a_gpu

ON_GPU = torch.cuda.is_available()
START = (
    "import torch, mbv3fast; m = mbv3fast.{variant}().eval().to('{device}')\n"
    "with torch.inference_mode(): m(torch.zeros(1, 3, 224, 224, device='{device}')).cpu()"
)


class Idle(StandIn):
    """A GPU whose replays take no time."""

    def capture(self, run: Callable[[], Outputs], pool: Any) -> tuple[Callable[[], None], Outputs]:
        self.captures.append(pool)
        return (lambda: None), run()


@pytest.fixture(params=["large", "small"])
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> tuple[FusedMobileNetV3, Tensor]:
    """A model that has answered once, and its input; tiny without a GPU, where its copy would be all that is timed."""
    if ON_GPU:
        model = getattr(mbv3fast, request.param)(backend="triton").half().cuda().eval()
        x = torch.randn(1, 3, 224, 224, dtype=torch.half, device="cuda")
    else:
        stand_in_for_a_gpu(monkeypatch)
        monkeypatch.setattr(graphs, "CudaDriver", Idle)
        model, x = getattr(mbv3fast, request.param)(backend="triton").eval(), torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        model(x)
    return model, x


def host_time(benchmark: Any, call: Callable[..., Any], *arguments: Any) -> Any:
    """Of calls on an idle GPU: behind a full queue a call waits for it."""
    if ON_GPU:
        return benchmark.pedantic(call, arguments, setup=torch.cuda.synchronize, rounds=1000, warmup_rounds=10)
    return benchmark(call, *arguments)


def bench_served_call(benchmark: Any, served: tuple[FusedMobileNetV3, Tensor]) -> None:
    """The whole of `model(x)` as the host sees it."""
    model, x = served
    benchmark.group = "host time of a served call, " + ("on a GPU" if ON_GPU else "the replay a stand-in's")
    with torch.inference_mode():
        host_time(benchmark, model, x)


def bench_replay(benchmark: Any, served: tuple[FusedMobileNetV3, Tensor]) -> None:
    """What of it comes before and after the GPU's work: the graph found, input copied, replay, outputs copied."""
    model, x = served
    benchmark.group = "host time of a replay with its copies, " + ("on a GPU" if ON_GPU else "the replay a stand-in's")
    with torch.inference_mode():
        service = model.service(x)
        assert service is not None
        assert host_time(benchmark, service.replay, x) is not None


def bench_freshness(benchmark: Any, served: tuple[FusedMobileNetV3, Tensor]) -> None:
    """The check for stale weights, which on a GPU runs beside the replay."""
    model, _ = served
    assert model._built is not None
    benchmark.group = "host time of the check for stale weights"
    assert benchmark(model._built.snapshot.holds)


@pytest.mark.parametrize("variant", ["large", "small"])
def bench_import_to_first_result(benchmark: Any, variant: str) -> None:
    """A process from its start to a first result; on a GPU with Triton's cache warm from the round before."""
    code = START.format(variant=variant, device="cuda" if ON_GPU else "cpu")
    benchmark.group = f"start to first result, {'GPU' if ON_GPU else 'CPU'}"
    benchmark.pedantic(subprocess.run, ([sys.executable, "-c", code],), {"check": True}, rounds=3, warmup_rounds=1)
