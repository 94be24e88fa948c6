"""Contenders side by side on a case: the same tensors, results compared before and after, turns taken."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from benchmarks.contest.cases import Case, Right
from benchmarks.contest.contenders import Contender
from benchmarks.contest.workers import RefusedError, View, Worker
from benchmarks.names import OURS
from mbv3fast.agreement import OTHERS_FACTOR
from tests.numerics import FACTOR, Error, allowance

TURNS = 5
Answer = TypeVar("Answer")


class Limits(NamedTuple):
    """Seconds for those that get ready together, and for each of the others; for a turn."""

    prepare: float = 300
    turn: float = 60


@dataclass
class Timed:
    """What was measured of a contender: the seconds of calls in each view, those that it took to be ready, by how much
    it and PyTorch err; or why it was refused.
    """

    seconds: dict[View, list[float]] = field(default_factory=dict)
    prepared_s: float | None = None
    error: Error | None = None
    torch_error: Error | None = None
    refused: str = ""

    def errors(self) -> dict[str, float] | None:
        """As results files have them."""
        if self.error is None or self.torch_error is None:
            return None
        theirs = {"torch_max": self.torch_error.largest, "torch_rms": self.torch_error.rms}
        return {"max": self.error.largest, "rms": self.error.rms, **theirs}


class SideBySide:
    """Contenders' processes on a kind of device, kept from case to case."""

    def __init__(self, device: str, limits: Limits) -> None:
        self._device, self._limits = device, limits
        self._workers: dict[Contender, Worker] = {}
        self._shared = tempfile.TemporaryDirectory()

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()
        self._workers.clear()
        self._shared.cleanup()

    def measure(self, case: Case, contenders: Sequence[Contender], rounds: Mapping[View, int]) -> dict[str, Timed]:
        """By name, in the views of `rounds`, with at least so many calls of each."""
        race = {contender: Timed(refused=contender.refuses(case.dtype, self._device)) for contender in contenders}
        for contender in contenders:  # their processes start side by side
            if not race[contender].refused and contender not in self._workers:
                self._workers[contender] = Worker(contender, self._device)
        with torch.backends.cudnn.flags(allow_tf32=False):  # float32 is float32, also for what others are compared with
            right = case.right(torch.device(self._device))
        case.share(Path(self._shared.name))
        for group in _groups(contenders, self._device):
            self._prepare(case, group, race, rounds, right)
        for view, count in rounds.items():
            for _ in range(TURNS):
                for contender, timed in race.items():
                    if view in timed.seconds:
                        turn = (view, ceil(count / TURNS), self._limits.turn)
                        timed.seconds[view] += self._try(contender, race, Worker.seconds, *turn) or []
        for contender, timed in race.items():
            result = self._try(contender, race, Worker.result, self._limits.turn)
            if result is not None:
                _compare(contender, timed, result, right)
        return {contender.name: timed for contender, timed in race.items()}

    def _prepare(
        self,
        case: Case,
        group: Sequence[Contender],
        race: Mapping[Contender, Timed],
        rounds: Mapping[View, int],
        right: Right,
    ) -> None:
        """All of a group at once."""
        deadline = time.monotonic() + self._limits.prepare
        for contender in group:
            self._try(contender, race, Worker.begin, case, Path(self._shared.name))
        for contender in group:
            prepared = self._try(contender, race, Worker.prepared, deadline, self._limits.prepare)
            if prepared is not None:
                race[contender].prepared_s = prepared.seconds
                race[contender].seconds = {view: [] for view in rounds if view in prepared.views}
                _compare(contender, race[contender], prepared.result, right)

    def _try(
        self, contender: Contender, race: Mapping[Contender, Timed], ask: Callable[..., Answer], *arguments: Any
    ) -> Answer | None:
        """What its worker answers; None where it was refused, or is now."""
        if race[contender].refused:
            return None
        try:
            return ask(self._workers[contender], *arguments)
        except RefusedError as error:
            race[contender].refused = str(error)
            del self._workers[contender]
        return None


def _groups(contenders: Sequence[Contender], device: str) -> Iterator[list[Contender]]:
    """Those that get ready together: all, but for those that time a GPU's kernels meanwhile."""
    alone = [contender for contender in contenders if contender.tunes and device == "cuda"]
    yield [contender for contender in contenders if contender not in alone]
    yield from ([contender] for contender in alone)


def _compare(contender: Contender, timed: Timed, result: Tensor, right: Right) -> None:
    """Refuse what computed something else."""
    ours = contender.name.startswith(OURS)
    if result.shape != right.truth.shape:
        timed.refused = f"computes {list(result.shape)}, needs {list(right.truth.shape)}"
        return
    if ours and result.dtype != right.plain.dtype:
        timed.refused = f"computes {result.dtype}, needs {right.plain.dtype}"
        return
    timed.torch_error = Error.of(right.plain, right.truth)
    timed.error = Error.of(result.to(right.truth.device), right.truth)
    allowed = allowance(right.plain, right.truth, FACTOR if ours else OTHERS_FACTOR)
    if not timed.error.within(allowed):
        errs, may = (f"{error.largest:.3g} (RMS {error.rms:.3g})" for error in (timed.error, allowed))
        timed.refused = f"errs by {errs}, may by {may}"
