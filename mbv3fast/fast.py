"""The drop-in models: MobileNetV3 modules whose eval forward runs on an engine wherever it may."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from mbv3fast.backend import requested
from mbv3fast.bound import Bound
from mbv3fast.config import NetworkConfig
from mbv3fast.fold import FoldedNetwork, UnsupportedError, common_dtype, fold_features, fold_head, fold_pool
from mbv3fast.lower import Lowering, lower
from mbv3fast.lraspp import LRASPP, Segmenter
from mbv3fast.model import Backbone, FeatureExtractor, MobileNetV3
from mbv3fast.opaque import call, compiles_around, register
from mbv3fast.plan import Plan
from mbv3fast.preprocess import Preprocess
from mbv3fast.serving import Served
from mbv3fast.torch_state import has_hooks, overrides

Model = TypeVar("Model", bound=Served)


class FusedMobileNetV3(Served, MobileNetV3):
    """A MobileNetV3 that in eval, without gradients, runs its folded form; otherwise plain PyTorch.

    Input [N, in_chans, H, W] of the weights' dtype, H and W >= 32, or bytes, [N, in_chans, H, W] or [N, H, W, in_chans]
    of uint8, which are normalised as `transforms()` does. Output [N, num_classes], or the embedding where num_classes
    is 0. Raises ValueError for an input of another shape or dtype, TypeError where it is no tensor.
    """

    def forward(self, x: Tensor) -> Tensor:
        served = self._replayed(x)
        if served is None:
            self.check_input(x)
            if compiles_around(x) and self._is_whole():
                return call(self._handle, x, self.num_classes, next(self.parameters()).dtype)
            served = self._serve(x)
        if served is None:
            return self.reference_forward(x)
        (out,), service = served
        return self.forward_head(out) if service.head_refused else out

    def bind(self, x: Tensor, out: Tensor | None = None) -> Bound:
        """A call without arguments that reads `x` where it lies and fills `out`, for loops that copy nothing.

        x: an input; write each next one into it. out: [N, outputs] of the weights' dtype, made where it is None.
        Returns a function that computes and returns `out`, which the next call overwrites; for one stream at a time.
        Raises ValueError for an `x` that is no input or an `out` that doesn't fit, RuntimeError in training mode.
        """
        return Bound(self, x, out)

    def forward_features(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self._built = None
        return super().forward_features(x)

    def _customised(self) -> bool:
        methods = ("forward_features", "forward_head", "reference_forward", "normalised", "check_input")
        return overrides(self, FusedMobileNetV3, methods)

    def _is_called_plainly(self) -> bool:
        return not (has_hooks(self) or overrides(self, FusedMobileNetV3, ("forward",)))

    def _is_whole(self) -> bool:
        """Whether torch.compile may take the model for one op whose output it knows."""
        idle = not (self.training or torch.is_grad_enabled() or torch.is_autocast_enabled("cuda"))
        plain = type(self.get_classifier()) is nn.Linear and not has_hooks(self.get_classifier())
        return idle and plain and self._handle > 0 and self.backend != "torch"

    def _parts(self) -> tuple[nn.Module, ...]:
        return (self.features, self.avgpool, self.classifier)

    def _lower(self, lowering: Lowering) -> tuple[Plan, str]:
        layers = fold_features(self.features)
        try:
            fold_pool(self.avgpool)
            head = fold_head(self.classifier)
            head_dtype, features_dtype = common_dtype(self.classifier), common_dtype(self.features)
            if head_dtype != features_dtype:
                raise UnsupportedError(f"classifier is {head_dtype}, features {features_dtype}")
        except UnsupportedError as unsupported:
            return lower(lowering, FoldedNetwork(layers, ()), taps=(-1,)), str(unsupported)
        return lower(lowering, FoldedNetwork(layers, head)), ""


class FusedFeatureExtractor(Served, FeatureExtractor):
    """A FeatureExtractor that in eval, without gradients, runs its folded form; otherwise plain PyTorch.

    Input as the classifier's; output a list of feature maps [N, C, H / stride, W / stride], rounded up, one for each of
    `out_indices`.
    """

    def forward(self, x: Tensor) -> list[Tensor]:
        served = self._replayed(x)
        if served is None:
            self.check_input(x)
            served = self._serve(x)
        return self.reference_forward(x) if served is None else list(served[0])

    def _customised(self) -> bool:
        return overrides(self, FusedFeatureExtractor, ("reference_forward", "maps", "normalised", "check_input"))

    def _is_called_plainly(self) -> bool:
        return not (has_hooks(self) or overrides(self, FusedFeatureExtractor, ("forward",)))

    def _lower(self, lowering: Lowering) -> tuple[Plan, str]:
        return _lower_maps(self, lowering)


class FusedLRASPP(Served, LRASPP):
    """An LRASPP that in eval, without gradients, runs its folded backbone; the head is PyTorch's always."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        served = self._replayed(x)
        if served is None:
            self.check_input(x)
            served = self._serve(x)
        return self.reference_forward(x) if served is None else self.segment(x, *served[0])

    def fused(self, backend: str = "triton") -> nn.Module:
        program = super().fused(backend)
        if any(has_hooks(module) for module in self.classifier.modules()):
            raise UnsupportedError("classifier has hooks")
        return Segmenter(program, copy.deepcopy(self.classifier), self.config.in_chans).eval()

    def _customised(self) -> bool:
        return overrides(self, FusedLRASPP, ("reference_forward", "maps", "normalised", "check_input"))

    def _is_called_plainly(self) -> bool:
        return not (has_hooks(self) or overrides(self, FusedLRASPP, ("forward", "segment")))

    def _lower(self, lowering: Lowering) -> tuple[Plan, str]:
        return _lower_maps(self, lowering)


def _lower_maps(model: Backbone, lowering: Lowering) -> tuple[Plan, str]:
    layers = fold_features(model.features)
    taps = sorted({level.index for level in model.levels if level.index < len(layers)})
    return lower(lowering, FoldedNetwork(layers, ()), taps), ""


def build(
    config: NetworkConfig,
    preprocess: Preprocess | None = None,
    *,
    backend: str = "auto",
    plan: str | None = None,
    cuda_graphs: bool = True,
    micro_batch: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
) -> FusedMobileNetV3 | FusedFeatureExtractor:
    """A model of `config` with fresh weights. Raises ValueError or BackendError for what can't serve."""
    if out_indices is not None and not features_only:
        raise ValueError("out_indices: needs features_only=True")
    model: FusedMobileNetV3 | FusedFeatureExtractor
    if features_only:
        model = FusedFeatureExtractor(config, preprocess, out_indices)
    else:
        model = FusedMobileNetV3(config, preprocess)
    return served(model, backend, plan, cuda_graphs, micro_batch)


def served(model: Model, backend: str, plan: str | None, cuda_graphs: bool, micro_batch: int | None) -> Model:
    """A new model, told by whom it is served. Raises ValueError or BackendError for what can't serve."""
    if micro_batch is not None and (type(micro_batch) is not int or micro_batch < 1):
        raise ValueError(f"micro_batch: got {micro_batch}, needs at least 1 image, or None")
    requested(backend, plan)
    model.micro_batch = micro_batch
    model.backend, model.plan_name, model.cuda_graphs = backend, plan, cuda_graphs
    model._handle = register(model)
    return model
