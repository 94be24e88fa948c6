"""The rule of `numerics` can fail: every part of both networks matters to it.

Each mutation removes one part of the reference: a squeeze-excite, a residual, a bias, an activation, a border
tap; or takes the other activation. A kernel with that mistake is then caught by the tests that compare networks.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from mbv3fast.fast import FusedMobileNetV3
from mbv3fast.layers import InvertedResidual
from tests.networks import calibrated_large, digit_tiles, photographs, trained_small
from tests.numerics import Error, allowance, by_module, exact

MARGIN = 10  # how many times the allowed error a mutation must exceed
ACTIVATIONS = (nn.ReLU, nn.Hardswish, nn.Hardsigmoid)

Edit = Callable[[nn.Module], None]


class Mutation(NamedTuple):
    """`edit` is done to the submodule `path`."""

    kind: str
    path: str
    edit: Edit


def remove_squeeze_excite(block: nn.Module) -> None:
    block.block[int(block.has_expand) + 1] = nn.Identity()


def remove_residual(block: nn.Module) -> None:
    block.has_residual = False


def remove_bias(module: nn.Module) -> None:
    with torch.no_grad():
        module.bias.zero_()


def remove_tap(conv: nn.Module) -> None:
    """The tap above and left of the middle, which at the border reads the padding."""
    row = conv.kernel_size[0] // 2 - 1
    with torch.no_grad():
        conv.weight[:, :, row, row] = 0


def replace_child(name: str, new: Callable[[], nn.Module]) -> Edit:
    def edit(parent: nn.Module) -> None:
        setattr(parent, name, new())

    return edit


def mutations(model: FusedMobileNetV3) -> Iterator[Mutation]:
    """Every mutation of `model`, found in its modules."""
    for path, module in model.named_modules():
        if isinstance(module, InvertedResidual):
            if module.has_squeeze_excite:
                yield Mutation("squeeze_excite", path, remove_squeeze_excite)
            if module.has_residual:
                yield Mutation("residual", path, remove_residual)
        if getattr(module, "bias", None) is not None:
            kind = "norm bias" if isinstance(module, nn.BatchNorm2d) else "bias"
            yield Mutation(kind, path, remove_bias)
        if isinstance(module, nn.Conv2d) and module.kernel_size > (1, 1):
            yield Mutation("tap", path, remove_tap)
        if isinstance(module, ACTIVATIONS):
            parent, _, name = path.rpartition(".")
            yield Mutation("activation", parent, replace_child(name, nn.Identity))
            if not isinstance(module, nn.Hardsigmoid):
                other = nn.ReLU if isinstance(module, nn.Hardswish) else nn.Hardswish
                yield Mutation("other activation", parent, replace_child(name, other))


# How many parts of each kind the paper's tables give.
COUNTS = {
    "large": {
        "squeeze_excite": 8,
        "residual": 10,
        "norm bias": 46,
        "bias": 8 * 2 + 2,
        "tap": 1 + 15,
        "activation": 46 - 15 + 8 * 2 + 1,
        "other activation": 46 - 15 + 8 + 1,
    },
    "small": {
        "squeeze_excite": 9,
        "residual": 6,
        "norm bias": 34,
        "bias": 9 * 2 + 2,
        "tap": 1 + 11,
        "activation": 34 - 11 + 9 * 2 + 1,
        "other activation": 34 - 11 + 9 + 1,
    },
}


def subject(variant: str) -> tuple[FusedMobileNetV3, Tensor]:
    if variant == "large":
        return calibrated_large(), photographs(2, seed=2)
    return trained_small(), digit_tiles()[:10]


@pytest.mark.parametrize("kind", COUNTS["large"])
@pytest.mark.parametrize("variant", COUNTS)
def test_no_part_can_be_missed(variant: str, kind: str) -> None:
    model, x = subject(variant)
    (truth,), (plain,) = exact(model, x), by_module(model, x)
    allowed = allowance(plain, truth).times(MARGIN)
    found = [mutation for mutation in mutations(model) if mutation.kind == kind]
    assert len(found) == COUNTS[variant][kind]
    unnoticed = []
    for mutation in found:
        mutant = copy.deepcopy(model)
        mutation.edit(mutant.get_submodule(mutation.path))
        error = Error.of(*by_module(mutant, x), truth)
        if error.largest <= allowed.largest or error.rms <= allowed.rms:
            unnoticed.append(f"{kind} of {mutation.path}: {error}")
    assert not unnoticed, f"allowed {allowed}, but {unnoticed}"
