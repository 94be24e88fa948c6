"""The drop-in models: MobileNetV3 modules whose eval forward runs on an engine wherever it may."""

from __future__ import annotations

import functools
import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from mbv3fast.backend import Decision, decide, requested
from mbv3fast.config import FeatureLevel, NetworkConfig
from mbv3fast.engine import Engine
from mbv3fast.fold import FoldedNetwork, UnsupportedError, fold_features, fold_head, fold_pool
from mbv3fast.freshness import ForkSafeLock, Snapshot, global_hooks, untrackable
from mbv3fast.layers import autocast_enabled
from mbv3fast.lower import lower_torch
from mbv3fast.model import Backbone, FeatureExtractor, MobileNetV3, is_traced
from mbv3fast.plan import Plan
from mbv3fast.preprocess import Preprocess

logger = logging.getLogger("mbv3fast")
_BUILDING = ForkSafeLock()
TRAINING = "the model is in training mode"
TRACED = "the input is traced, compiled or no plain tensor"


@dataclass(frozen=True)
class _Built:
    """An engine and the state of the model that it is right for; `note` says why there is none, or what it leaves."""

    snapshot: Snapshot
    levels: tuple[FeatureLevel, ...]
    engine: Engine | None
    note: str


class _Fused(Backbone):
    """Adds the engine to a backbone: built at the first forward that may use it, dropped when the model changes."""

    backend: str = "auto"
    _built: _Built | None = None

    def explain(self, x: Tensor) -> Decision:
        """Whether `model(x)`, called in the present grad mode, is run by the engine or by PyTorch, and why.

        Raises what `model(x)` would for an `x` that is no input.
        """
        self.check_input(x)
        engine, reason = self._resolve(x)
        return Decision(engine is not None, reason)

    def plan(self) -> Plan:
        """The steps that the engine runs for this model in eval. Raises UnsupportedError where PyTorch must."""
        return self._fuse()[0].plan

    def repack(self) -> None:
        """Forget the folded weights, so that the next forward reads them anew.

        Needed only after writes that PyTorch doesn't count (through `.data`, NumPy views or another process) to a
        part of a tensor; those to a whole tensor are noticed.
        """
        with _BUILDING:  # so that a build under way in another thread is forgotten too
            self._built = None

    def train(self, mode: bool = True) -> Any:
        self.repack()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self.repack()
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_built"}

    @abstractmethod
    def _fuse(self) -> tuple[Engine, str]:
        """A new engine for the model as it is, and what it leaves to PyTorch. Raises UnsupportedError."""

    @abstractmethod
    def _customised(self) -> bool:
        """Whether a subclass or an assignment changed a method that the engine bypasses."""

    def _parts(self) -> tuple[nn.Module, ...]:
        """The modules that the engine's result depends on."""
        return (self.features,)

    def _levels(self) -> tuple[FeatureLevel, ...]:
        """The feature maps that are put out, none where it is logits."""
        return ()

    def _serving(self, x: Tensor) -> Engine | None:
        """What serves `model(x)`, None where PyTorch must run the modules; the reason is logged once."""
        engine, reason = self._resolve(x)
        if engine is None:
            if torch.is_grad_enabled():
                self._built = None  # weights may move now, some without a trace; no lock, torch.compile traces this
            if reason not in (TRAINING, TRACED):
                _say_once(f"PyTorch runs this model's modules: {reason}")
        return engine

    def _resolve(self, x: Tensor) -> tuple[Engine | None, str]:
        """The engine for `model(x)`, or None, and why."""
        built = self._refusal(x) or self._current()
        if isinstance(built, str):
            return None, built
        if built.engine is None:
            return None, built.note
        return built.engine, decide(x.device, x.dtype).reason + built.note

    def _refusal(self, x: Tensor) -> str | None:
        """Why this call isn't the engine's, whatever it would be built from; None where it may be."""
        requested(self.backend)
        if self.training:
            return TRAINING
        if getattr(self, "_is_replica", False):
            return "a replica of nn.DataParallel lives for one call"
        if is_traced(x):
            return TRACED
        if self._customised():
            return "the model's own forward methods are overridden"
        if torch.is_grad_enabled():
            return "gradients are enabled: call the model under torch.inference_mode()"
        if autocast_enabled(x.device):
            return "autocast is enabled"
        if torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0:
            return "a torch.func transform or forward-mode differentiation is active"
        if global_hooks():
            return "hooks for all modules are registered"
        decision = decide(x.device, x.dtype)
        return None if decision.fused else decision.reason

    def _fresh(self) -> _Built | None:
        """What was built, if the model is still as it was then."""
        built = self._built
        holds = built is not None and built.levels == self._levels() and built.snapshot.holds()
        return built if holds else None

    def _current(self) -> _Built | str:
        """The engine for the model as it is now, or why there can be none."""
        built = self._fresh()
        if built is None:
            with _BUILDING:
                built = self._fresh()  # another thread may have built it meanwhile
                if built is not None:
                    return built
                reason = untrackable(self)
                if reason:
                    return reason
                levels = self._levels()
                snapshot = Snapshot(self, self._parts())  # before folding, so that edits meanwhile are noticed
                try:
                    built = _Built(snapshot, levels, *self._fuse())
                except UnsupportedError as unsupported:
                    built = _Built(snapshot, levels, None, str(unsupported))
                self._built = built
        return built


class FusedMobileNetV3(_Fused, MobileNetV3):
    """A MobileNetV3 that in eval, without gradients, runs its folded form; otherwise plain PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        engine = self._serving(x)
        if engine is None:
            return self.reference_forward(x)
        (out,) = engine(x)
        return out if out.dim() == 2 else self.forward_head(out)  # a feature map where the head is left to PyTorch

    def forward_features(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self._built = None
        return super().forward_features(x)

    def _customised(self) -> bool:
        return _overrides(self, FusedMobileNetV3, ("forward_features", "forward_head", "reference_forward"))

    def _parts(self) -> tuple[nn.Module, ...]:
        return (self.features, self.avgpool, self.classifier)

    def _fuse(self) -> tuple[Engine, str]:
        layers = fold_features(self.features)
        dtype = common_dtype(self.features)
        try:
            fold_pool(self.avgpool)
            head = fold_head(self.classifier)
            if common_dtype(self.classifier) != dtype:
                raise UnsupportedError(f"classifier is {common_dtype(self.classifier)}, features {dtype}")
        except UnsupportedError as unsupported:
            _say_once(f"PyTorch runs this model's classifier: {unsupported}")
            note = f"; the classifier is left to PyTorch: {unsupported}"
            return Engine(lower_torch(FoldedNetwork(layers, ()), dtype, taps=(-1,))), note
        return Engine(lower_torch(FoldedNetwork(layers, head), dtype)), ""


class FusedFeatureExtractor(_Fused, FeatureExtractor):
    """A FeatureExtractor that in eval, without gradients, runs its folded form; otherwise plain PyTorch."""

    def forward(self, x: Tensor) -> list[Tensor]:
        self.check_input(x)
        engine = self._serving(x)
        return self.reference_forward(x) if engine is None else list(engine(x))

    def _customised(self) -> bool:
        return _overrides(self, FusedFeatureExtractor, ("reference_forward",))

    def _levels(self) -> tuple[FeatureLevel, ...]:
        return tuple(self.levels)

    def _fuse(self) -> tuple[Engine, str]:
        layers = fold_features(self.features)
        taps = sorted({level.index for level in self.levels if level.index < len(layers)})
        return Engine(lower_torch(FoldedNetwork(layers, ()), common_dtype(self.features), taps)), ""


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


def _overrides(model: nn.Module, kind: type[nn.Module], methods: tuple[str, ...]) -> bool:
    return any(m in model.__dict__ or getattr(type(model), m) is not getattr(kind, m) for m in methods)


def common_dtype(module: nn.Module) -> torch.dtype:
    """The one dtype of all parameters. Raises UnsupportedError where there are several."""
    dtypes = {parameter.dtype for parameter in module.parameters()}
    if len(dtypes) != 1:
        raise UnsupportedError(f"parameters have several dtypes: {', '.join(sorted(map(str, dtypes)))}")
    return dtypes.pop()


@functools.cache
def _say_once(message: str) -> None:
    logger.warning("%s", message)
