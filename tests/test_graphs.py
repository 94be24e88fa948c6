"""The cache of CUDA graphs, with a stand-in for the GPU alone: keys, order, locks, pools, whose tensors are whose."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mbv3fast import graphs
from mbv3fast.graphs import GraphRunner, Outputs
from tests.stand_ins import StandIn, in_threads

CPU = torch.device("cpu")


def double(x: Tensor) -> Outputs:
    return (x * 2, x.amax((1, 2, 3)))


def runner(capacity: int = 16) -> tuple[GraphRunner, StandIn]:
    driver = StandIn()
    return GraphRunner(double, driver, capacity), driver


def test_what_comes_out_is_right_and_the_callers_own() -> None:
    run, driver = runner()
    first, second = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    before = run(first)
    kept = [output.clone() for output in before]
    after = run(second)
    for outputs, x in ((before, first), (after, second)):
        for got, wanted in zip(outputs, double(x), strict=True):
            assert torch.equal(got, wanted)
    assert all(map(torch.equal, before, kept))
    assert len(driver.captures) == len(run) == 1


def test_only_what_was_captured_is_replayed() -> None:
    run, driver = runner()
    x = torch.randn(2, 3, 4, 5)
    assert run.replay(x) is None
    run(x)
    outputs = run.replay(x.neg())
    assert outputs is not None
    assert all(map(torch.equal, outputs, double(x.neg())))
    assert run.replay(x[:1]) is None
    driver.is_capturing = True
    assert run.replay(x) is None
    assert len(driver.captures) == 1


def test_each_shape_dtype_and_layout_has_its_graph() -> None:
    run, driver = runner()
    x = torch.randn(2, 3, 4, 5)
    variants = [x, x[:1], x.half(), x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3)]
    for given in variants * 3:
        assert all(map(torch.equal, run(given), double(given)))
    assert len(run) == len(driver.captures) == len(variants)
    run(torch.randn(2, 3, 4, 10)[..., ::2])  # strided: the graph of its shape serves
    assert len(run) == len(variants)


def test_the_switch_of_tf32_has_its_graph() -> None:
    run, _ = runner()
    before = torch.get_float32_matmul_precision()
    try:
        for precision in ("highest", "high", "highest"):
            torch.set_float32_matmul_precision(precision)
            run(torch.randn(1, 3, 4, 4))
    finally:
        torch.set_float32_matmul_precision(before)
    assert len(run) == 2


def test_the_least_recently_used_is_dropped_when_nothing_uses_it() -> None:
    run, driver = runner(capacity=2)
    sizes = [torch.randn(n, 3, 4, 4) for n in (1, 2, 3)]
    for x in (sizes[0], sizes[1], sizes[0], sizes[2]):  # drops the second
        run(x)
    assert (len(run), driver.settled, len(driver.captures)) == (2, 1, 3)
    run(sizes[0])
    assert len(driver.captures) == 3
    run(sizes[1])
    assert len(driver.captures) == 4


def test_streams_share_neither_graphs_nor_pools() -> None:
    run, driver = runner()
    for stream in (0, 1):
        driver.streams.number = stream
        for batch in (1, 2):
            run(torch.randn(batch, 3, 4, 4))
    assert len(run) == 4
    first, second = driver.captures[:2], driver.captures[2:]
    assert first[0] is first[1]
    assert second[0] is second[1]
    assert first[0] is not second[0]


def test_a_caller_that_captures_gets_the_launches_themselves() -> None:
    run, driver = runner()
    driver.is_capturing = True
    x = torch.randn(1, 3, 4, 4)
    assert all(map(torch.equal, run(x), double(x)))
    assert (len(run), driver.captures) == (0, [])


def test_a_capture_that_fails_leaves_nothing() -> None:
    def broken(x: Tensor) -> Outputs:
        if x.shape[0] == 2:
            raise RuntimeError("no")
        return double(x)

    run = GraphRunner(broken, StandIn())
    with pytest.raises(RuntimeError, match="no"):
        run(torch.randn(2, 3, 4, 4))
    assert len(run) == 0
    assert not graphs._CAPTURING.locked()
    x = torch.randn(1, 3, 4, 4)
    assert all(map(torch.equal, run(x), double(x)))


class Slow(StandIn):
    """Other threads have their turn between a replay and what follows it."""

    def capture(self, run: Callable[[], Outputs], pool: Any) -> tuple[Callable[[], None], Outputs]:
        replay, outputs = super().capture(run, pool)

        def slow() -> None:
            replay()
            time.sleep(1e-3)

        return slow, outputs


@pytest.mark.parametrize("shapes", [1, 2])
def test_threads_of_one_stream_mix_neither_inputs_nor_outputs(shapes: int) -> None:
    """Whose graphs share memory, also those of different shapes."""
    driver = Slow()
    run = GraphRunner(double, driver)

    def work(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(10):
            x = torch.randn(1 + seed % shapes, 3, 8, 8, generator=generator)
            assert all(map(torch.equal, run(x), double(x)))

    in_threads(work, 8)
    assert len(driver.captures) == shapes


def test_bound_tensors_are_read_and_filled_where_they_lie() -> None:
    driver = StandIn()
    run = GraphRunner(lambda x: (x.amax((2, 3)),), driver)
    x, out = torch.randn(2, 3, 4, 4), torch.zeros(2, 3)
    replay = run.bind(x, out)
    for _ in range(3):
        x.normal_()
        replay()
        assert torch.equal(out, x.amax((2, 3)))
    assert (len(run), len(driver.captures)) == (0, 1)


@pytest.mark.parametrize("capacity", [0, -1])
def test_no_graphs_at_all_is_no_capacity(capacity: int) -> None:
    with pytest.raises(ValueError, match=f"^capacity: got {capacity}, needs at least 1"):
        GraphRunner(double, StandIn(), capacity)
