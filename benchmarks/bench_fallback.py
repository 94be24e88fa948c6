"""What CPU users get: the folded network against eager torchvision, same weights and inputs, in one run.

    pytest benchmarks/bench_fallback.py --benchmark-only

Outputs are compared before anything is timed.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import mbv3fast
from tests.conftest import peer, randomise

BATCHES = (1, 8)
CONTENDERS = ("mbv3fast", "torchvision")


@pytest.fixture(autouse=True)
def _all_cores() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))


def forwards(variant: str) -> dict[str, Callable[[Tensor], Tensor]]:
    """Each contender's forward on the same randomised weights."""
    peer_model = randomise(getattr(peer("torchvision").models, f"mobilenet_v3_{variant}")())
    build = mbv3fast.large if variant == "large" else mbv3fast.small
    return {"torchvision": peer_model, "mbv3fast": build(weights=peer_model.state_dict()).eval()}


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("variant", ["large", "small"])
def bench_fallback(benchmark: Callable[..., Tensor], variant: str, batch: int, contender: str) -> None:
    models = forwards(variant)
    x = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(models["mbv3fast"](x), models["torchvision"](x), rtol=1e-3, atol=1e-4)
        benchmark.group = f"{variant} batch {batch} fp32"  # type: ignore[attr-defined]
        benchmark(models[contender], x)
