"""MobileNetV3 in plain PyTorch: what trains, what runs anywhere, and the reference of every kernel."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from mbv3fast.checks import check_input, refuse_misfit
from mbv3fast.config import NetworkConfig, with_overrides
from mbv3fast.description import Description, describe
from mbv3fast.layers import ConvBNAct, InvertedResidual, activation_module, initialise
from mbv3fast.preprocess import Preprocess
from mbv3fast.pyramid import FeatureLevel, feature_levels


class Backbone(nn.Module):
    """What all networks share: `features`, which each of them makes, the levels in them, the preprocessing."""

    features: nn.Sequential
    levels: tuple[FeatureLevel, ...] = ()  # of the maps that are put out
    unsaid: str = ""  # what of the modules the config doesn't say, where that is known

    def __init__(self, config: NetworkConfig, preprocess: Preprocess | None = None) -> None:
        super().__init__()
        self.config = config
        self.preprocess = preprocess or Preprocess.default(config.in_chans)
        self.register_state_dict_post_hook(_describe_state_dict)

    @property
    def feature_levels(self) -> tuple[FeatureLevel, ...]:
        """(index into `features`, channels, stride) of the pyramid's five levels."""
        return feature_levels(self.config)

    def transforms(self) -> Preprocess:
        """The preprocessing that the weights were trained with: PIL image or uint8 tensor to [C, H, W] floats."""
        return self.preprocess

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As nn.Module's, but a strict load that can't fit is refused before anything is copied.

        Raises RuntimeError with the first offending key and what to do.
        """
        if strict:
            refuse_misfit(self, self.config, state_dict, assign)
        return super().load_state_dict(state_dict, strict=strict, assign=assign)

    def description(self) -> Description:
        """What a state dict can't say and its reader needs."""
        return Description(self.config, self._preprocess(), unsaid=self.unsaid)

    def _preprocess(self) -> Preprocess:
        """What a user may have unset."""
        return self.preprocess or Preprocess.default(self.config.in_chans)

    def reference_forward(self, x: Tensor) -> Any:
        """The forward module by module, by no engine: the definition of right."""
        raise NotImplementedError

    def maps(self, x: Tensor) -> list[Tensor]:
        """The feature maps of `levels`, in their order, module by module."""
        taps = {level.index for level in self.levels}
        outputs = []
        for index, module in enumerate(self.features):
            x = module(x)
            if index in taps:
                outputs.append(x)
        return outputs

    def check_input(self, x: Tensor) -> None:
        """Raise ValueError unless `x` is [N >= 1, in_chans, H >= 32, W >= 32], TypeError where it is no tensor."""
        check_input(x, self.features)

    def normalised(self, x: Tensor) -> Tensor:
        """`x`, if it is bytes normalised as by `transforms()`; floats are taken to be so already."""
        if not isinstance(x, Tensor) or x.dtype != torch.uint8:  # torch.fx's stand for floats
            return x
        return self._preprocess().normalised(x, next(self.features.parameters()).dtype)


class MobileNetV3(Backbone):
    """The classifier of Howard et al. 2019 (arXiv 1905.02244), with torchvision's module names.

    Input [N, in_chans, H, W] of the weights' dtype (float32, float16, bfloat16), N >= 1, H and W >= 32, or bytes,
    [N, in_chans, H, W] or [N, H, W, in_chans] of uint8, which are normalised as `transforms()` does.
    Output [N, num_classes], or the embedding [N, head_hidden_size] where num_classes is 0.
    Raises ValueError where an input has another shape or dtype.
    """

    def __init__(self, config: NetworkConfig, preprocess: Preprocess | None = None) -> None:
        super().__init__(config, preprocess)
        self.labels: tuple[str, ...] | None = None
        self.features = feature_layers(config)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        head = nn.Linear(config.last_convs[-1], config.hidden, bias=config.head_bias)
        self.classifier = nn.Sequential(
            head,
            activation_module(config.activation),
            nn.Dropout(config.dropout),  # not in place, since relu's gradient needs its output
            _classifier_layer(config.hidden, config.num_classes),
        )
        initialise(self)

    @property
    def num_features(self) -> int:
        """Channels of `forward_features`' output."""
        return self.config.last_convs[-1]

    @property
    def head_hidden_size(self) -> int:
        """Width of the embedding before the last layer."""
        inputs = getattr(self.get_classifier(), "in_features", self.config.hidden)
        return inputs if isinstance(inputs, int) else self.config.hidden

    @property
    def num_classes(self) -> int:
        """Outputs of the last layer as it is now; 0 where that is no linear layer."""
        outputs = getattr(self.get_classifier(), "out_features", 0)
        return outputs if isinstance(outputs, int) else 0

    def forward_features(self, x: Tensor) -> Tensor:
        """[N, in_chans, H, W] to the last feature map [N, num_features, ceil(H / 32), ceil(W / 32)]."""
        self.check_input(x)
        return self.features(self.normalised(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The last feature map to logits [N, num_classes], or the embedding [N, hidden] with `pre_logits`."""
        pooled = torch.flatten(self.avgpool(x), 1)
        if not pre_logits:
            return self.classifier(pooled)
        return self.classifier[:-1](pooled) if isinstance(self.classifier, nn.Sequential) else pooled

    def forward(self, x: Tensor) -> Tensor:
        return self.reference_forward(x)

    def reference_forward(self, x: Tensor) -> Tensor:
        """The forward module by module, by no engine: the definition of right."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        has_layers = isinstance(self.classifier, nn.Sequential) and len(self.classifier) > 0
        return self.classifier[-1] if has_layers else self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last layer by a fresh one of `num_classes` outputs; 0 leaves the embedding.

        global_pool is there for timm's callers: None or "avg", ValueError for another.
        """
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool: got {global_pool!r}, needs None or 'avg'")
        self.config = replace(self.config, num_classes=num_classes)
        like = next(self.parameters())
        last = _classifier_layer(self.head_hidden_size, num_classes).to(like.device, like.dtype)
        initialise(last)
        last.train(self.training)
        if isinstance(self.classifier, nn.Sequential) and len(self.classifier) > 0:
            self.classifier[-1] = last
        else:
            self.classifier = last  # type: ignore[assignment] # a user's, in place of all layers
        self.labels = None

    def description(self) -> Description:
        config = with_overrides(self.config, num_classes=self.num_classes)
        labels = None if self.labels is None else tuple(map(str, self.labels))
        labels = labels if labels and len(labels) == config.num_classes else None
        return Description(config, self._preprocess(), labels, self.unsaid)


class FeatureInfo(tuple[FeatureLevel, ...]):
    """The levels that a FeatureExtractor puts out, with timm's accessors."""

    def channels(self) -> list[int]:
        return [level.channels for level in self]

    def reduction(self) -> list[int]:
        return [level.stride for level in self]

    def module_name(self) -> list[str]:
        return [f"features.{level.index}" for level in self]


class FeatureExtractor(Backbone):
    """The pyramid: [N, in_chans, H, W] to a list of feature maps, one for each of `out_indices`.

    Levels 0 to 4 have strides 2 to 32; `feature_info` says what comes out, in order.
    """

    def __init__(
        self, config: NetworkConfig, preprocess: Preprocess | None = None, out_indices: Sequence[int] | None = None
    ) -> None:
        super().__init__(config, preprocess)
        count = len(self.feature_levels)
        try:
            indices = tuple(range(count) if out_indices is None else map(operator.index, out_indices))
        except TypeError as error:
            raise ValueError(f"out_indices: got {out_indices!r}, needs levels from 0 to {count - 1}") from error
        if not indices or not all(-count <= i < count for i in indices):
            raise ValueError(f"out_indices: got {indices}, needs levels from 0 to {count - 1}")
        self.levels = tuple(self.feature_levels[i] for i in sorted({i % count for i in indices}))
        self.features = nn.Sequential(*list(feature_layers(config))[: self.levels[-1].index + 1])
        initialise(self)

    @property
    def feature_info(self) -> FeatureInfo:
        """`channels()`, `reduction()` and `module_name()` of the outputs, in order, as timm gives them."""
        return FeatureInfo(self.levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.reference_forward(x)

    def reference_forward(self, x: Tensor) -> list[Tensor]:
        """The forward module by module, by no engine."""
        self.check_input(x)
        return self.maps(self.normalised(x))


def feature_layers(config: NetworkConfig) -> nn.Sequential:
    """Stem, blocks and last convolutions."""
    stem = ConvBNAct(config.in_chans, config.stem, 3, config, stride=2, activation=config.activation)
    blocks = [InvertedResidual(block, config) for block in config.blocks]
    widths = [config.blocks[-1].out_channels, *config.last_convs]
    last = [
        ConvBNAct(before, after, 1, config, activation=config.activation)
        for before, after in itertools.pairwise(widths)
    ]
    return nn.Sequential(stem, *blocks, *last)


def _classifier_layer(hidden: int, num_classes: int) -> nn.Module:
    return nn.Linear(hidden, num_classes) if num_classes else nn.Identity()


def _describe_state_dict(module: nn.Module, _state_dict: Any, _prefix: str, metadata: dict[str, Any]) -> None:
    """Let the state dict carry, beside PyTorch's version numbers, what its tensors can't say."""
    assert isinstance(module, Backbone)
    describe(metadata, module.description())
