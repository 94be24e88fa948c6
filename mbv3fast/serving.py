"""How a model is served: whose call it is, by which engine, and whether that engine is still right."""

from __future__ import annotations

import functools
import logging
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mbv3fast.backend import OF_CUDA, BackendError, Decision, decide, lacks_dtype, on_hardware, plan_backend, requested
from mbv3fast.calls import CUSTOMISED, TRACED, TRAINING, refusal
from mbv3fast.engine import Engine
from mbv3fast.fold import UnsupportedError, common_dtype
from mbv3fast.freshness import Snapshot, untrackable
from mbv3fast.graphs import GraphRunner, capturing, settle
from mbv3fast.lower import Lowering
from mbv3fast.model import Backbone
from mbv3fast.opaque import register
from mbv3fast.plan import Plan
from mbv3fast.program import FusedProgram
from mbv3fast.selfcheck import Verdict
from mbv3fast.service import Built, Service, Settings
from mbv3fast.torch_state import fork_safe_lock, is_recorded, is_traced, transform_active

logger = logging.getLogger("mbv3fast")
_BUILDING = fork_safe_lock()
_OWN = ("_built", "_captured", "_handle")  # of a model, and of no copy


class Served(Backbone):
    """Adds the engine to a backbone: built at the first forward that may use it, dropped when the model changes.

    backend, plan_name: who runs it, as in `mbv3fast.large`. cuda_graphs: whether a GPU replays captured launches.
    micro_batch: the images that are run at once, None for as many as keep within the engine's memory.
    """

    backend: str = "auto"
    plan_name: str | None = None
    cuda_graphs: bool = True
    micro_batch: int | None = None
    _built: Built | None = None
    _captured: tuple[Service, ...] = ()  # kept, since graphs of the caller's read their weights
    _handle: int = 0

    def explain(self, x: Tensor) -> Decision:
        """Whether `model(x)`, called in the present grad mode, is run by the engine or by PyTorch, and why.

        Raises what `model(x)` would for an `x` that is no input.
        """
        self.check_input(x)
        decision = self._decide(x)
        if not decision.fused:
            return decision
        found = self._found(self._settings(decision), x)
        if isinstance(found, str):
            return Decision(False, found)
        head = f"; the classifier is left to PyTorch: {found.head_refused}" if found.head_refused else ""
        return replace(decision, reason=decision.reason + head)

    def plan(self, backend: str | None = None) -> Plan:
        """The steps that the engine runs for this model in eval, or would by "triton", "cuda" or "torch".

        Raises UnsupportedError where PyTorch must, BackendError for a dtype that no kernels of that backend take.
        """
        like = next(self.parameters())
        if backend is None:
            backend = plan_backend(requested(self.backend, self.plan_name), like.device, like.dtype)
        if backend in OF_CUDA and lacks_dtype(like.dtype):
            raise BackendError(f"backend: {backend!r} has no plan for {like.dtype}: {lacks_dtype(like.dtype)}")
        return self._lower(Lowering(backend, self._dtype(backend)))[0]

    def service(self, x: Tensor) -> Service | None:
        """What serves `model(x)` now, in this grad mode; None where PyTorch runs the modules."""
        self.check_input(x)
        decision = self._decide(x)
        found = self._found(self._settings(decision), x) if decision.fused else None
        return found if isinstance(found, Service) else None

    def fused(self, backend: str = "triton") -> nn.Module:
        """The model as it is now as a module, for torch.export and torch.compile.

        backend: "triton", of `torch.ops.mbv3fast.*`, or "torch", of PyTorch's own operators on folded weights.
        Raises UnsupportedError where a part of the model has no op, its classifier included.
        """
        if backend not in ("triton", "torch"):
            raise ValueError(f"backend: got {backend!r}, needs 'triton' or 'torch'")
        if not self.is_plain():
            raise UnsupportedError(CUSTOMISED)
        plan, head_refused = self._lower(Lowering(backend, common_dtype(self.features)))
        if head_refused:
            raise UnsupportedError(head_refused)
        return FusedProgram(plan, self._preprocess()).eval()

    def warmup(self, shapes: Iterable[Sequence[int]], dtype: torch.dtype | None = None) -> None:
        """Run zeros of each of `shapes` once, so that later calls compile and capture nothing.

        dtype: of the inputs, the weights' by default; torch.uint8 for bytes.
        Raises RuntimeError in training mode, TypeError for what is no list of shapes, and what the model raises for a
        shape that it can't take.
        """
        shapes = list(shapes)
        if not all(isinstance(shape, Sequence) for shape in shapes):
            raise TypeError(f"shapes: got {shapes}, needs a list of shapes, [(1, 3, 224, 224)]")
        if self.training:
            raise RuntimeError("warmup: the model is in training mode; call eval() first")
        like = next(self.parameters())
        with torch.inference_mode():
            for shape in shapes:
                self(torch.zeros(tuple(shape), dtype=dtype or like.dtype, device=like.device))
        if like.is_cuda:
            torch.cuda.synchronize(like.device)

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
        return {name: value for name, value in self.__dict__.items() if name not in _OWN}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._handle = register(self)

    @abstractmethod
    def _lower(self, lowering: Lowering) -> tuple[Plan, str]:
        """The plan of the model as it is, and why it ends before the classifier, if so. Raises UnsupportedError."""

    def is_plain(self) -> bool:
        """Whether a call of the model is the forward of its class, without hooks on it or methods that were changed."""
        return self._is_called_plainly() and not self._customised()

    @abstractmethod
    def _is_called_plainly(self) -> bool:
        """Whether a call of the model is its forward, and nothing else."""

    @abstractmethod
    def _customised(self) -> bool:
        """Whether a subclass or an assignment changed a method that the engine bypasses."""

    def _parts(self) -> tuple[nn.Module, ...]:
        """The modules that the engine's result depends on."""
        return (self.features,)

    def _replayed(self, x: Tensor) -> tuple[tuple[Tensor, ...], Service] | None:
        """The outputs for `x` of a graph captured before, and what made them; None without one that is right now.

        It is launched at once, and all checks run while the GPU works.
        """
        if is_traced(x) or is_recorded() or torch.is_grad_enabled() or transform_active():
            return None  # they would record what is done to `x`
        built = self._built
        if built is None or not isinstance(built.result, Service):
            return None
        outputs = built.result.replay(x)
        if outputs is None:
            return None
        decision = self._decide(x)
        fresh = decision.fused and self._fresh(self._settings(decision)) is built
        return (outputs, built.result) if fresh else None

    def _serve(self, x: Tensor) -> tuple[tuple[Tensor, ...], Service] | None:
        """The outputs for `x`, and what made them; None where PyTorch must run the modules, the reason logged once."""
        decision = self._decide(x)
        if decision.fused:
            settings = self._settings(decision)
            found = self._found(settings, x)
            if isinstance(found, Service):
                if found.head_refused:
                    _say_once(f"PyTorch runs this model's classifier: {found.head_refused}")
                if settings.on_gpu and capturing(x) and all(kept is not found for kept in self._captured):
                    self._captured += (found,)
                return found.run(self.normalised(x) if settings.backend == "torch" else x), found
            decision = Decision(False, found)
        if torch.is_grad_enabled():
            self._built = None  # weights may move now, some without a trace; no lock, torch.compile traces this
        if decision.reason not in (TRAINING, TRACED):
            _say_once(f"PyTorch runs this model's modules: {decision.reason}")
        return None

    def _decide(self, x: Tensor) -> Decision:
        """Whether this call is an engine's, as far as can be said without building one."""
        if is_traced(x) or is_recorded():
            return Decision(False, TRACED)
        request = requested(self.backend, self.plan_name)
        reason = refusal(self, x, self._customised())
        if reason:
            return Decision(False, reason)
        dtype = next(self.features.parameters()).dtype if x.dtype == torch.uint8 else x.dtype
        return decide(request, x.device, dtype)

    def _settings(self, decision: Decision) -> Settings:
        on_gpu = on_hardware(decision.backend)
        checked = on_gpu and not decision.by_name
        graphs = on_gpu and self.cuda_graphs
        levels = tuple(self.levels)  # a user's list too
        return Settings(decision.backend, levels, self._preprocess(), on_gpu, graphs, self.micro_batch, checked)

    def _found(self, settings: Settings, x: Tensor) -> Service | str:
        """What serves `x`, or why nothing does.

        Raises BackendError where nothing can, but a backend was asked for; RuntimeError where the caller captures a
        graph, and something must first be folded, compiled or tried, none of which a capture can hold.
        """
        if settings.on_gpu and capturing(x) and not self._has_run(settings, x):
            needed = f"model.warmup([{tuple(x.shape)}], {x.dtype})"
            raise RuntimeError(f"x: got a shape and dtype that never ran with these weights; capture after {needed}")
        found = self._current(settings)
        if isinstance(found, str):
            request = requested(self.backend, self.plan_name)
            if request.name in ("triton", *OF_CUDA):
                raise BackendError(f"{request.origin}: {request.name!r} can't serve this model: {found}")
            return found
        if lack := found.engine.lack(x):
            raise BackendError(f"plan: {settings.backend!r} can't serve {tuple(x.shape)}: {lack}")
        return found.refusal(x, functools.partial(self.reference_forward, x)) or found

    def _has_run(self, settings: Settings, x: Tensor) -> bool:
        """Whether nothing need be made for `x`, be it that nothing can."""
        built = self._fresh(settings)
        if built is None or isinstance(built.result, str):
            return built is not None or untrackable(self) is not None
        return built.result.needs_nothing(x)

    def _fresh(self, settings: Settings) -> Built | None:
        """What was built, if the model is still as it was then."""
        built = self._built
        holds = built is not None and built.settings == settings and built.snapshot.holds()
        return built if holds else None

    def _current(self, settings: Settings) -> Service | str:
        """What serves the model as it is now, or why nothing can."""
        built = self._fresh(settings)
        if built is None:
            with _BUILDING:
                built = self._fresh(settings)  # another thread may have built it meanwhile
                if built is None:
                    reason = untrackable(self)
                    if reason:
                        return reason
                    built = self._built = self._build(settings)
        return built.result

    def _build(self, settings: Settings) -> Built:
        snapshot = Snapshot(self, self._parts())  # before folding, so that edits meanwhile are noticed
        try:
            plan, head_refused = self._lower(Lowering(settings.backend, self._dtype(settings.backend)))
            if plan.in_one_launch and head_refused:
                return Built(snapshot, settings, f"its classifier is left to PyTorch: {head_refused}")
            engine = Engine(plan, settings.preprocess, settings.micro_batch)
        except UnsupportedError as unsupported:
            return Built(snapshot, settings, str(unsupported))
        runner = GraphRunner(engine) if settings.graphs else None
        if settings.on_gpu:  # other streams may read the weights before what was launched here has ended
            settle(next(self.parameters()).device)
        verdicts: dict[Any, Verdict] | None = {} if settings.checked else None
        return Built(snapshot, settings, Service(engine, head_refused, runner, verdicts))

    def _dtype(self, backend: str) -> torch.dtype:
        """What the plan computes in: the parameters' dtype, but for narrow ones of a CPU, where PyTorch is slow."""
        dtype = common_dtype(self.features)
        on_cpu = next(self.features.parameters()).device.type == "cpu"
        return torch.float32 if on_cpu and dtype.itemsize < 4 and backend == "torch" else dtype


@functools.cache
def _say_once(message: str) -> None:
    logger.warning("%s", message)
