"""The drop-in models: MobileNetV3 modules whose eval forward runs on an engine wherever it may."""

from __future__ import annotations

import functools
import logging
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from mbv3fast.backend import BackendError, Decision, decide, plan_backend, requested
from mbv3fast.config import FeatureLevel, NetworkConfig
from mbv3fast.engine import Engine
from mbv3fast.fold import FoldedNetwork, UnsupportedError, fold_features, fold_head, fold_pool
from mbv3fast.freshness import Snapshot, untrackable
from mbv3fast.lower import lower_torch, lower_triton
from mbv3fast.model import Backbone, FeatureExtractor, MobileNetV3
from mbv3fast.plan import Plan
from mbv3fast.preprocess import Preprocess
from mbv3fast.torch_state import (
    autocast_enabled,
    fork_safe_lock,
    global_hooks,
    is_replica,
    is_traced,
    transform_active,
)

logger = logging.getLogger("mbv3fast")
_BUILDING = fork_safe_lock()
TRAINING = "the model is in training mode"
TRACED = "the input is traced, compiled or no plain tensor"


@dataclass(frozen=True)
class _Service:
    """The engine of a model, and why it leaves the classifier to PyTorch, if it does."""

    engine: Engine
    head_refused: str = ""


@dataclass(frozen=True)
class _Built:
    """What came of folding a model, a service or why there can be none, and the state of it that this is right for."""

    snapshot: Snapshot
    settings: tuple[Any, ...]
    result: _Service | str


class _Fused(Backbone):
    """Adds the engine to a backbone: built at the first forward that may use it, dropped when the model changes."""

    backend: str = "auto"
    _built: _Built | None = None

    def explain(self, x: Tensor) -> Decision:
        """Whether `model(x)`, called in the present grad mode, is run by the engine or by PyTorch, and why.

        Raises what `model(x)` would for an `x` that is no input.
        """
        self.check_input(x)
        decision = self._decide(x)
        if not decision.fused:
            return decision
        found = self._current(decision)
        if isinstance(found, str):
            return Decision(False, found)
        head = f"; the classifier is left to PyTorch: {found.head_refused}" if found.head_refused else ""
        return replace(decision, reason=decision.reason + head)

    def plan(self) -> Plan:
        """The steps that the engine runs for this model in eval. Raises UnsupportedError where PyTorch must."""
        like = next(self.parameters())
        return self._fuse(plan_backend(requested(self.backend), like.device, like.dtype)).engine.plan

    def repack(self) -> None:
        """Forget the folded weights, so that the next forward reads them anew.

        Needed only after writes that PyTorch doesn't count (through `.data`, NumPy views or another process): on a GPU
        after all of them, on a CPU after those to a part of a tensor; those to a whole tensor are noticed there.
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
    def _fuse(self, backend: str) -> _Service:
        """A new engine for the model as it is. Raises UnsupportedError."""

    @abstractmethod
    def _customised(self) -> bool:
        """Whether a subclass or an assignment changed a method that the engine bypasses."""

    def _parts(self) -> tuple[nn.Module, ...]:
        """The modules that the engine's result depends on."""
        return (self.features,)

    def _levels(self) -> tuple[FeatureLevel, ...]:
        """The feature maps that are put out, none where it is logits."""
        return ()

    def _engine(self, network: FoldedNetwork, backend: str, taps: Sequence[int] | None = None) -> Engine:
        dtype = common_dtype(self.features)
        if backend == "triton":
            return Engine(lower_triton(network, dtype, taps), self._preprocess())
        return Engine(lower_torch(network, _computing_dtype(self.features), taps), self._preprocess())

    def _serve(self, x: Tensor) -> tuple[tuple[Tensor, ...], _Service] | None:
        """The outputs for `x`, and what made them; None where PyTorch must run the modules, the reason logged once."""
        decision = self._decide(x)
        if decision.fused:
            found = self._current(decision)
            if not isinstance(found, str):
                if found.head_refused:
                    _say_once(f"PyTorch runs this model's classifier: {found.head_refused}")
                given = x if decision.backend == "triton" else self.normalised(x)
                return found.engine(given), found
            decision = Decision(False, found)
        if torch.is_grad_enabled():
            self._built = None  # weights may move now, some without a trace; no lock, torch.compile traces this
        if decision.reason not in (TRAINING, TRACED):
            _say_once(f"PyTorch runs this model's modules: {decision.reason}")
        return None

    def _decide(self, x: Tensor) -> Decision:
        """Whether this call is an engine's, as far as can be said without building one."""
        request = requested(self.backend)
        reason = self._refusal(x)
        if reason:
            return Decision(False, reason)
        dtype = next(self.features.parameters()).dtype if x.dtype == torch.uint8 else x.dtype
        return decide(request, x.device, dtype)

    def _refusal(self, x: Tensor) -> str:
        """Why this call is PyTorch's, whatever the backend; empty where it isn't."""
        if self.training:
            return TRAINING
        if is_replica(self):
            return "a replica of nn.DataParallel lives for one call"
        if is_traced(x):
            return TRACED
        if self._customised():
            return "the model's own forward methods are overridden"
        if torch.is_grad_enabled():
            return "gradients are enabled: call the model under torch.inference_mode()"
        if autocast_enabled(x.device):
            return "autocast is enabled"
        if transform_active():
            return "a torch.func transform or forward-mode differentiation is active"
        return "hooks for all modules are registered" if global_hooks() else ""

    def _fresh(self, settings: tuple[Any, ...]) -> _Built | None:
        """What was built, if the model is still as it was then."""
        built = self._built
        holds = built is not None and built.settings == settings and built.snapshot.holds()
        return built if holds else None

    def _current(self, decision: Decision) -> _Service | str:
        """What serves the model as it is now, or why nothing can.

        Raises BackendError where nothing can, but a backend was asked for.
        """
        settings = (decision.backend, self._levels(), self._preprocess())
        built = self._fresh(settings)
        if built is None:
            with _BUILDING:
                built = self._fresh(settings)  # another thread may have built it meanwhile
                if built is None:
                    reason = untrackable(self)
                    if reason:
                        return self._unless_asked_for(reason)
                    built = self._built = self._build(decision.backend, settings)
        return built.result if isinstance(built.result, _Service) else self._unless_asked_for(built.result)

    def _unless_asked_for(self, reason: str) -> str:
        request = requested(self.backend)
        if request.name == "triton":
            raise BackendError(f"{request.origin}: 'triton' can't serve this model: {reason}")
        return reason

    def _build(self, backend: str, settings: tuple[Any, ...]) -> _Built:
        snapshot = Snapshot(self, self._parts())  # before folding, so that edits meanwhile are noticed
        try:
            return _Built(snapshot, settings, self._fuse(backend))
        except UnsupportedError as unsupported:
            return _Built(snapshot, settings, str(unsupported))


class FusedMobileNetV3(_Fused, MobileNetV3):
    """A MobileNetV3 that in eval, without gradients, runs its folded form; otherwise plain PyTorch."""

    def forward(self, x: Tensor) -> Tensor:
        self.check_input(x)
        served = self._serve(x)
        if served is None:
            return self.reference_forward(x)
        (out,), service = served
        return self.forward_head(out) if service.head_refused else out

    def forward_features(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self._built = None
        return super().forward_features(x)

    def _customised(self) -> bool:
        return _overrides(self, FusedMobileNetV3, ("forward_features", "forward_head", "reference_forward"))

    def _parts(self) -> tuple[nn.Module, ...]:
        return (self.features, self.avgpool, self.classifier)

    def _fuse(self, backend: str) -> _Service:
        layers = fold_features(self.features)
        try:
            fold_pool(self.avgpool)
            head = fold_head(self.classifier)
            head_dtype, features_dtype = common_dtype(self.classifier), common_dtype(self.features)
            if head_dtype != features_dtype:
                raise UnsupportedError(f"classifier is {head_dtype}, features {features_dtype}")
        except UnsupportedError as unsupported:
            return _Service(self._engine(FoldedNetwork(layers, ()), backend, taps=(-1,)), str(unsupported))
        return _Service(self._engine(FoldedNetwork(layers, head), backend))


class FusedFeatureExtractor(_Fused, FeatureExtractor):
    """A FeatureExtractor that in eval, without gradients, runs its folded form; otherwise plain PyTorch."""

    def forward(self, x: Tensor) -> list[Tensor]:
        self.check_input(x)
        served = self._serve(x)
        return self.reference_forward(x) if served is None else list(served[0])

    def _customised(self) -> bool:
        return _overrides(self, FusedFeatureExtractor, ("reference_forward",))

    def _levels(self) -> tuple[FeatureLevel, ...]:
        return tuple(self.levels)

    def _fuse(self, backend: str) -> _Service:
        layers = fold_features(self.features)
        taps = sorted({level.index for level in self.levels if level.index < len(layers)})
        return _Service(self._engine(FoldedNetwork(layers, ()), backend, taps))


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


def _computing_dtype(module: nn.Module) -> torch.dtype:
    """The parameters' dtype, but float32 for the narrow ones of a CPU, which computes in these many times slower."""
    dtype = common_dtype(module)
    narrow = dtype.itemsize < 4 and next(module.parameters()).device.type == "cpu"
    return torch.float32 if narrow else dtype


@functools.cache
def _say_once(message: str) -> None:
    logger.warning("%s", message)
