"""Contenders side by side: what is wrong isn't timed, what hangs costs its limit and nobody else anything."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch

from benchmarks.contest.cases import NetworkCase
from benchmarks.contest.contenders import Ready
from benchmarks.contest.side_by_side import TURNS, Limits, SideBySide, Timed
from benchmarks.contest.step_cases import op_cases
from benchmarks.contest.workers import _Session
from mbv3fast.agreement import OTHERS_FACTOR
from tests import contenders
from tests.contenders import CASE

LIMITS = Limits(prepare=100, turn=3)
ROUNDS = {"latency": 2 * TURNS}


@pytest.fixture
def contest() -> Iterator[SideBySide]:
    contest = SideBySide("cpu", LIMITS)
    yield contest
    contest.close()


def is_timed(timed: Timed) -> bool:
    return not timed.refused and [len(times) for times in timed.seconds.values()] == [2 * TURNS]


def test_what_is_wrong_is_refused_and_the_others_are_timed(contest: SideBySide) -> None:
    named = (contenders.RIGHT, contenders.WRONG, contenders.MISSHAPEN, contenders.RAISES, contenders.LACKS)
    found = contest.measure(CASE, named, ROUNDS)
    assert list(found) == [contender.name for contender in named]
    assert is_timed(found["right"])
    assert found["right"].error is not None
    assert found["right"].error.largest <= OTHERS_FACTOR * found["right"].torch_error.largest + 1e-6
    for name, reason in {
        "wrong": "errs by",
        "misshapen": "computes [1, 16, 4, 4], needs [2, 16, 4, 4]",
        "raises": "ValueError: as peers do",
        "lacks": "isn't installed",
    }.items():
        assert found[name].refused.startswith(reason)
        assert not any(found[name].seconds.values()), "nothing wrong is timed"


def test_what_is_no_result_of_the_case_is_refused(contest: SideBySide) -> None:
    named = (contenders.COMPLEX, contenders.SPARSE, contenders.WIDE, contenders.RIGHT)
    found = contest.measure(CASE, named, ROUNDS)
    assert is_timed(found["right"])
    for name in ("complex", "sparse"):
        assert found[name].refused == "TypeError: its result is a Tensor, needs a dense tensor of numbers on the CPU"
    assert found["mbv3fast"].refused == "computes torch.float64, needs torch.float32", "ours has its own dtype"


def test_what_is_wrong_later_is_refused_though_timed(contest: SideBySide) -> None:
    found = contest.measure(CASE, (contenders.WRONG_LATER,), ROUNDS)
    assert found["wrong later"].refused.startswith("errs by")


def test_what_hangs_or_dies_costs_its_limit_and_nobody_else_anything(contest: SideBySide) -> None:
    named = (contenders.HANGS, contenders.RIGHT, contenders.DIES)
    begin = time.monotonic()
    found = contest.measure(CASE, named, ROUNDS)
    assert time.monotonic() - begin < LIMITS.prepare + 5 * LIMITS.turn
    assert is_timed(found["right"])
    assert found["hangs"].refused == "no answer in 3 s"
    assert found["dies"].refused == "its process ended with exit code 7"
    again = contest.measure(CASE, (contenders.RIGHT, contenders.HANGS), ROUNDS)
    assert is_timed(again["right"])
    assert again["hangs"].refused == "no answer in 3 s", "it has a new process"


def test_what_is_never_ready_costs_its_limit() -> None:
    contest = SideBySide("cpu", Limits(prepare=3, turn=3))
    try:
        begin = time.monotonic()
        found = contest.measure(CASE, (contenders.NEVER_READY,), ROUNDS)
        assert time.monotonic() - begin < 20
        assert found["never ready"].refused == "not ready in 3 s"
    finally:
        contest.close()


def test_every_network_of_ours_keeps_the_rule() -> None:
    """The factor for peers is not ours: a contender that is named as ours has the strict one."""
    contest = SideBySide("cpu", LIMITS)
    try:
        ours = contenders.Contender("mbv3fast", contenders.anywhere, contenders._wrong)
        assert contest.measure(CASE, (ours,), ROUNDS)["mbv3fast"].refused.startswith("errs by")
    finally:
        contest.close()


def test_a_result_that_is_sent_is_a_copy() -> None:
    """Sending a tensor moves its memory, where a runtime may have been told to write."""
    out = torch.zeros(3)
    session = _Session(contenders.RIGHT, torch.device("cpu"))
    session._ready, session._last = Ready(lambda: out, lambda result: result, lambda _: None), out
    assert session.result().data_ptr() != out.data_ptr()


def test_cases_have_names_of_their_own() -> None:
    cases = list(op_cases("float16", (1, 8)))
    assert len({str(case) for case in cases}) == len(cases) > 150
    assert str(NetworkCase("large", "float16", 8)) == "large-float16-8-224"
    ops = {case.op for case in cases}
    assert ops >= {"depthwise_conv", "squeeze_excite", "pointwise_conv", "depthwise_project"}
