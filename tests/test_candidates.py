"""The configurations that a tuner tries."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.asks import Ask
from benchmarks.candidates import LIMITS, MOST, WARPS, candidates, fits
from mbv3fast.kernels.configs import HEURISTICS, Config
from mbv3fast.kernels.tuned import OPTIONAL
from mbv3fast.ops.target import Target
from tests.tables import PRODUCT, planned_asks

pytestmark = pytest.mark.usefixtures("folder")


@pytest.mark.parametrize("images", [1, 8, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_candidates(images: int, dtype: torch.dtype) -> None:
    asks = planned_asks(images, dtype, Target())
    asks.append(Ask("squeeze", {"images": images, "pixels": 49, "channels": 960, "squeezed": 240, "itemsize": 2}))
    asks.append(Ask("excite", {"images": images, "parts": 8, "channels": 960}))
    asks.append(Ask("apply_scale", {"rows": images * 49, "channels": 960, "itemsize": 2}))
    asks.append(Ask("depthwise_conv", next(ask.sizes for ask in asks if ask.op == "depthwise_conv") | {"squeeze": 0}))
    assert {ask.op for ask in asks} == HEURISTICS.keys()
    for op, sizes in asks:
        first, *others = found = candidates(op, sizes)
        if op == "excite_images" and (images < 16 or dtype == torch.float32):
            assert found == [{}]
            continue
        assert first == HEURISTICS[op](**sizes)
        near = first or others[0]  # what the others are a step away from
        assert fits(op, sizes, near, near)
        assert 5 <= len(found) <= MOST
        assert len({tuple(sorted(config.items())) for config in found}) == len(found)
        for config in filter(None, others):
            assert config.keys() == near.keys()
            check_limits(op, sizes, config, near)
        assert ({} in found) == (op in OPTIONAL)


def check_limits(op: str, sizes: Mapping[str, int], config: Config, heuristic: Config) -> None:
    for name, value in config.items():
        if name == "UNROLL":
            assert value in (1, sizes["kernel"], sizes["kernel"] ** 2)
        elif name == "num_stages":
            assert 2 <= value <= 4
        else:
            assert value & (value - 1) == 0 < value
    assert config["num_warps"] in WARPS
    for block, (least, most, covers) in LIMITS[op].items():
        assert least <= config[block] <= most
        assert config[block] < 2 * max(sizes[covers], least) or config[block] <= heuristic[block]


def test_few_threads_hold_no_large_block() -> None:
    """Or the compiler spends its time on spilling them."""
    sizes = {**PRODUCT, "rows": 100_000, "outputs": 960}
    found = candidates("pointwise_conv", sizes)
    assert (found[0]["BLOCK_M"], found[0]["BLOCK_N"], found[0]["num_warps"]) == (128, 128, 8)
    for config in found:
        assert config["BLOCK_M"] * config["BLOCK_N"] <= 128 * 32 * config["num_warps"]
    assert {config["num_warps"] for config in found} == {4, 8}


def test_where_two_kernels_are_better_there_is_no_choice() -> None:
    sizes = {"images": 1, "out_height": 7, "out_width": 7, "channels": 64, "outputs": 512, "kernel": 3, "itemsize": 2}
    assert candidates("depthwise_project", sizes) == [{}]


def test_the_chips_multiprocessors_count() -> None:
    sizes = {**PRODUCT, "rows": 10_000}
    assert candidates("pointwise_conv", sizes, Target(sms=8))[0] == HEURISTICS["pointwise_conv"](**sizes, sms=8)
    assert candidates("pointwise_conv", sizes, Target(sms=8))[0] != candidates("pointwise_conv", sizes)[0]
