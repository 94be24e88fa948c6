"""What `accelerate` doesn't know of timm's models is refused by the name of its module."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from mbv3fast import UnknownModuleError, accelerate
from tests.test_accelerate_refused import set_part


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_part("flatten", nn.Identity()), r"flatten is a Identity, needs Flatten"),
        (
            lambda model: setattr(model.blocks[1][0], "conv_s2d", nn.Identity()),
            r"blocks\.1\.0 has an anti-aliasing filter or a space-to-depth",
        ),
        (lambda model: setattr(model.blocks[5][0], "has_skip", True), r"blocks\.5\.0 has a residual or an anti"),
        (set_part("norm_head", nn.BatchNorm2d(1024)), r"norm_head is a BatchNorm2d, needs Identity"),
        (lambda model: setattr(model.global_pool, "pool_type", "max"), r"global_pool takes the max, needs the mean"),
        (
            lambda model: model.blocks.append(model.blocks[1]),
            r"blocks\.6\.0 is a InvertedResidual behind the last conv",
        ),
        (lambda model: model.blocks.pop(-1), r"blocks end without a convolution"),
        (lambda model: model.__delattr__("act2"), r"model lacks a part: .*act2"),
        (set_part("act2", nn.Tanh()), r"act2 is a Tanh, needs ReLU or Hardswish"),
        (set_part("conv_head", nn.Linear(576, 1024)), r"conv_head is a Linear, needs Conv2d"),
        (
            set_part("conv_head", nn.Conv2d(576, 1024, 1, padding=1)),
            r"conv_head is Conv2d.*, needs a plain 1x1",
        ),
        (set_part("blocks.5.0.aa", nn.AvgPool2d(1)), r"blocks\.5\.0 has a residual or an anti-aliasing filter"),
        (set_part("blocks.1.0.aa", nn.AvgPool2d(1)), r"blocks\.1\.0 has an anti-aliasing filter or a space-to-depth"),
        (set_part("blocks.1.0.bn1.drop", nn.Dropout()), r"blocks\.1\.0\.bn1\.drop is a Dropout, needs Identity"),
        (set_part("blocks.1.0.bn3.act", nn.ReLU()), r"blocks\.1\.0\.conv_pwl has an activation behind it, needs none"),
        (set_part("blocks.1.0.bn2.act", nn.Identity()), r"blocks\.1\.0\.conv_dw has no activation"),
        (set_part("blocks.0.0.se.conv_reduce", nn.Linear(16, 8)), r"blocks\.0\.0\.se\.conv_reduce is a Linear, needs"),
        (set_part("blocks.0.0.se.act1", nn.Tanh()), r"blocks\.0\.0\.se\.act1 is a Tanh, needs ReLU or Hardswish"),
        (lambda model: setattr(model, "drop_rate", 1.0), r"drop_rate is 1\.0, needs a number from 0 to below 1"),
        (
            lambda model: model.pretrained_cfg.update(interpolation="random"),
            r"pretrained_cfg: .*got .random.*; pass",
        ),
        (set_part("blocks.0.0.se.gate", nn.Sigmoid()), r"blocks\.0\.0\.se\.gate is a Sigmoid, needs Hardsigmoid"),
        (
            lambda model: setattr(model.blocks[1][0], "has_skip", True),
            r"blocks\.1\.0 expands to as many .* doesn't fit",
        ),
        (set_part("blocks.1", nn.ModuleList()), r"blocks\.1 is a ModuleList, needs Sequential"),
    ],
)
def test_what_is_not_known_of_timms_is_refused_by_name(
    timm: ModuleType, change: Callable[[nn.Module], Any], words: str
) -> None:
    model = timm.create_model("mobilenetv3_small_100", num_classes=5).eval()
    change(model)
    with pytest.raises(UnknownModuleError, match=words):
        accelerate(model)
