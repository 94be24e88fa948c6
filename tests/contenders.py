"""Contenders that misbehave, for the benchmarks to notice: each is asked for `case` and returns what it likes."""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from torch import Tensor

from benchmarks.contest.contenders import Contender, Ready, anywhere, in_torch
from benchmarks.contest.step_cases import OpCase

SIZES = {"N": 2, "C": 8, "H": 4, "W": 4, "M": 16}
CASE = OpCase("pointwise_conv", "float32", tuple(sorted(SIZES.items())), (("activation", "relu"),))


def _right(case: OpCase, device: torch.device) -> Ready:
    tensors = case.tensors(device)
    return in_torch(lambda: case.refer(tensors), device)


def _wrong(case: OpCase, device: torch.device) -> Ready:
    tensors = case.tensors(device)
    return in_torch(lambda: case.refer(tensors) * 1.001, device)


def _misshapen(case: OpCase, device: torch.device) -> Ready:
    tensors = case.tensors(device)
    return in_torch(lambda: case.refer(tensors)[:1], device)


def _wrong_later(case: OpCase, device: torch.device) -> Ready:
    """As what computes nothing once it was captured."""
    tensors, calls = case.tensors(device), iter(range(10**6))

    def run() -> Tensor:
        return case.refer(tensors) if next(calls) == 0 else torch.zeros(2, 16, 4, 4)

    return in_torch(run, device)


def _never_ready(_case: OpCase, _device: torch.device) -> Ready:
    time.sleep(10**6)
    raise AssertionError


def _hangs_when_timed(case: OpCase, device: torch.device) -> Ready:
    tensors, calls = case.tensors(device), iter(range(10**6))

    def run() -> Tensor:
        if next(calls) > 0:
            time.sleep(10**6)
        return case.refer(tensors)

    return in_torch(run, device)


def _dies(_case: OpCase, _device: torch.device) -> Ready:
    os._exit(7)


def _raises(_case: OpCase, _device: torch.device) -> Ready:
    raise ValueError("as peers do")


def _complex(case: OpCase, device: torch.device) -> Ready:
    tensors = case.tensors(device)
    return in_torch(lambda: torch.complex(case.refer(tensors), torch.ones(2, 16, 4, 4)), device)


def _sparse(case: OpCase, device: torch.device) -> Ready:
    tensors = case.tensors(device)
    return in_torch(lambda: case.refer(tensors).to_sparse(), device)


def _wide(case: OpCase, device: torch.device) -> Ready:
    tensors = case.tensors(device)
    return in_torch(lambda: case.refer(tensors).double(), device)


def _lacks(_device: str) -> str:
    return "isn't installed"


def _contender(name: str, prepare: Any, lacks: Any = anywhere) -> Contender:
    return Contender(name, lacks, prepare)


RIGHT = _contender("right", _right)
WRONG = _contender("wrong", _wrong)
MISSHAPEN = _contender("misshapen", _misshapen)
COMPLEX = _contender("complex", _complex)
SPARSE = _contender("sparse", _sparse)
WIDE = _contender("mbv3fast", _wide)
WRONG_LATER = _contender("wrong later", _wrong_later)
NEVER_READY = _contender("never ready", _never_ready)
HANGS = _contender("hangs", _hangs_when_timed)
DIES = _contender("dies", _dies)
RAISES = _contender("raises", _raises)
LACKS = _contender("lacks", _right, _lacks)
