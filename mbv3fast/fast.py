"""The drop-in models: MobileNetV3 modules whose eval forward runs on an engine wherever it may."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mbv3fast.backend import Decision, decide, requested
from mbv3fast.config import NetworkConfig
from mbv3fast.engine import Engine
from mbv3fast.fold import FoldedNetwork, UnsupportedError, fold_features, fold_head, fold_pool
from mbv3fast.freshness import Snapshot, global_hooks, untrackable
from mbv3fast.lower import lower_torch
from mbv3fast.model import Backbone, FeatureExtractor, MobileNetV3
from mbv3fast.plan import Plan
from mbv3fast.preprocess import Preprocess

logger = logging.getLogger("mbv3fast")
_BUILDING = threading.Lock()


@dataclass(frozen=True)
class _Built:
    """An engine and the state of the model that it is right for; no engine where `reason` forbids one."""

    snapshot: Snapshot
    engine: Engine | None
    fused_head: bool
    reason: str


class _Fused(Backbone):
    """Adds the engine to a backbone: built at the first forward that may use it, dropped when the model changes."""

    backend: str = "auto"
    _built: _Built | None = None

    def explain(self, x: Tensor) -> Decision:
        """Whether `model(x)`, called in the present grad mode, is run by the engine or by PyTorch, and why."""
        refusal = self._refusal(x)
        if refusal:
            return Decision(False, refusal)
        built = self._current()
        if isinstance(built, str):
            return Decision(False, built)
        return Decision(built.engine is not None, built.reason or decide(x.device, x.dtype).reason)

    def plan(self) -> Plan:
        """The steps that the engine runs for this model in eval. Raises UnsupportedError where PyTorch must."""
        return self._fuse()[0].plan

    def repack(self) -> None:
        """Forget the folded weights, so that the next forward reads them anew.

        Needed only after writes that PyTorch doesn't count: through `.data`, NumPy views or another process.
        """
        self._built = None

    def train(self, mode: bool = True) -> Any:
        self.repack()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.repack()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_built"}

    def _fuse(self) -> tuple[Engine, bool]:
        raise NotImplementedError

    def _parts(self) -> tuple[nn.Module, ...]:
        """The modules that the engine's result depends on."""
        return (self.features,)

    def _serving(self, x: Tensor) -> _Built | None:
        """What serves `model(x)`, None where PyTorch must run the modules; the reason is logged once."""
        reason = self._refusal(x)
        if reason is None:
            built = self._current()
            if not isinstance(built, str) and built.engine is not None:
                return built
            reason = built if isinstance(built, str) else built.reason
        if torch.is_grad_enabled():
            self.repack()  # an optimizer may move the weights now, some without leaving a trace
        if reason:
            _say_once(reason)
        return None

    def _refusal(self, x: Tensor) -> str | None:
        """Why this call isn't the engine's whatever the model's state; "" where that needs no explanation."""
        requested(self.backend)
        if self.training or type(x) is not Tensor or torch.compiler.is_compiling() or torch._C._get_tracing_state():
            return ""
        if torch.is_grad_enabled():
            return "gradients are enabled: call the model under torch.inference_mode()"
        if torch.is_autocast_enabled(x.device.type):
            return "autocast is enabled"
        if torch._C._functorch.maybe_current_level() is not None:
            return "a torch.func transform is active"
        if global_hooks():
            return "hooks for all modules are registered"
        decision = decide(x.device, x.dtype)
        return None if decision.fused else decision.reason

    def _current(self) -> _Built | str:
        """The engine for the model as it is now, or why there can be none."""
        built = self._built
        if built is None or not built.snapshot.holds():
            with _BUILDING:
                reason = untrackable(self._parts())
                if reason:
                    return reason
                snapshot = Snapshot(self, self._parts())  # before folding, so that edits meanwhile are noticed
                try:
                    built = _Built(snapshot, *self._fuse(), reason="")
                except UnsupportedError as unsupported:
                    built = _Built(snapshot, None, False, str(unsupported))
                self._built = built
        return built


class FusedMobileNetV3(_Fused, MobileNetV3):
    """A MobileNetV3 that in eval, without gradients, runs its folded form; otherwise plain PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        built = self._serving(x)
        if built is None or built.engine is None:
            return self.reference_forward(x)
        (out,) = built.engine(x)
        return out if built.fused_head else self.forward_head(out)

    def forward_features(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.repack()
        return super().forward_features(x)

    def _parts(self) -> tuple[nn.Module, ...]:
        return (self.features, self.avgpool, self.classifier)

    def _fuse(self) -> tuple[Engine, bool]:
        layers = fold_features(self.features)
        dtype = common_dtype(self.features)
        try:
            fold_pool(self.avgpool)
            head = fold_head(self.classifier)
        except UnsupportedError as unsupported:
            _say_once(f"{unsupported}: the classifier is left to PyTorch")
            return Engine(lower_torch(FoldedNetwork(layers, ()), dtype, taps=(-1,))), False
        return Engine(lower_torch(FoldedNetwork(layers, head), dtype)), True


class FusedFeatureExtractor(_Fused, FeatureExtractor):
    """A FeatureExtractor that in eval, without gradients, runs its folded form; otherwise plain PyTorch."""

    def forward(self, x: Tensor) -> list[Tensor]:
        self.check_input(x)
        built = self._serving(x)
        if built is None or built.engine is None:
            return self.reference_forward(x)
        return list(built.engine(x))

    def _fuse(self) -> tuple[Engine, bool]:
        layers = fold_features(self.features)
        taps = [level.index for level in self.levels]
        return Engine(lower_torch(FoldedNetwork(layers, ()), common_dtype(self.features), taps)), False


def build(
    config: NetworkConfig,
    preprocess: Preprocess | None = None,
    *,
    backend: str = "auto",
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
) -> FusedMobileNetV3 | FusedFeatureExtractor:
    """A model of `config` with fresh weights. Raises ValueError or BackendError for a `backend` that can't serve."""
    requested(backend)
    if out_indices is not None and not features_only:
        raise ValueError("out_indices: needs features_only=True")
    model: FusedMobileNetV3 | FusedFeatureExtractor
    if features_only:
        model = FusedFeatureExtractor(config, preprocess, out_indices)
    else:
        model = FusedMobileNetV3(config, preprocess)
    model.backend = backend
    return model


def common_dtype(module: nn.Module) -> torch.dtype:
    """The one dtype of all parameters. Raises UnsupportedError where there are several."""
    dtypes = {parameter.dtype for parameter in module.parameters()}
    if len(dtypes) != 1:
        raise UnsupportedError(f"parameters have several dtypes: {', '.join(sorted(map(str, dtypes)))}")
    return dtypes.pop()


@functools.cache
def _say_once(reason: str) -> None:
    logger.warning("PyTorch runs this model's modules: %s", reason)
