"""What a model is served by, and what that is right for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor

from mbv3fast.engine import Engine
from mbv3fast.freshness import Snapshot
from mbv3fast.graphs import GraphRunner
from mbv3fast.preprocess import Preprocess, channels_first
from mbv3fast.pyramid import FeatureLevel
from mbv3fast.selfcheck import Verdict, judge
from mbv3fast.torch_state import on_device, tf32_allowed


@dataclass(frozen=True)
class Service:
    """The engine of a model, and why it leaves the classifier to PyTorch, if it does."""

    engine: Engine
    head_refused: str = ""
    runner: GraphRunner | None = None  # on a GPU, unless graphs are off
    verdicts: dict[Any, Verdict] | None = None  # by inputs' keys; None where no self-check is wanted
    ran: set[Any] = field(default_factory=set)  # keys of inputs whose kernels are compiled

    def run(self, x: Tensor) -> tuple[Tensor, ...]:
        """The outputs for `x`, by a graph where there are any."""
        with on_device(x):
            outputs = self.engine(x) if self.runner is None else self.runner(x)
        self.ran.add(_key(x))
        return outputs

    def needs_nothing(self, x: Tensor) -> bool:
        """Whether inputs like `x` have run, or are known to be left to PyTorch."""
        return bool(self._judged(x)) or _key(x) in self.ran

    def replay(self, x: Tensor) -> tuple[Tensor, ...] | None:
        """The outputs for `x` by a graph captured before; None without one, or where the self-check is against it."""
        if self.runner is None or self._judged(x) != "":
            return None
        with on_device(x):
            return self.runner.replay(x)

    def refusal(self, x: Tensor, theirs: Callable[[], Any]) -> str:
        """Why the self-check leaves inputs like `x` to PyTorch, which runs `theirs`; empty where it doesn't."""
        if self.verdicts is not None and self._judged(x) is None:
            images, *others = channels_first(x, len(self.engine.preprocess.mean)).shape
            shape = (self.engine.images_at_once((images, *others)), *others)
            with on_device(x):
                self.verdicts[_key(x)] = judge(self.engine.plan, shape, x.device, lambda: self.run(x), theirs)
        return self._judged(x) or ""

    def _judged(self, x: Tensor) -> str | None:
        """Why the self-check is against inputs like `x`, empty where it isn't, None before it was made."""
        if self.verdicts is None:
            return ""
        verdict = self.verdicts.get(_key(x))
        return None if verdict is None else verdict.reason


class Settings(NamedTuple):
    """What an engine is built for, beside the model's modules."""

    backend: str
    levels: tuple[FeatureLevel, ...]
    preprocess: Preprocess
    on_gpu: bool  # by kernels of ours
    graphs: bool
    micro_batch: int | None
    checked: bool  # by the self-check, before an input of a new shape is served


@dataclass(frozen=True)
class Built:
    """What came of folding a model, a service or why there can be none, and the state of it that this is right for."""

    snapshot: Snapshot
    settings: Settings
    result: Service | str


def _key(x: Tensor) -> tuple[Any, ...]:
    """What decides which kernels run, beside the engine."""
    return (x.device, x.shape, x.dtype, tf32_allowed())
