"""What plans and ops launch compiles, for few images and for many, without spills and within what a chip has."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import pytest
import torch

from tests.offline.compiling import Launch, binary, compile_launch, compile_within_limits
from tests.offline.launches import (
    VARIANTS,
    Launches,
    bytes_launches,
    distinct,
    op_launches,
    plan_launches,
    squeeze_excite_launches,
)

FEW, MANY = 1, 128  # images, which configurations differ for
CHIPS = (80, 90)
DETAILS = {"C", "N", "K", "S", "ACTIVATION", "GATE"}  # constants that change little of how a program is built
HALF, OTHERS = torch.float16, (torch.float32, torch.bfloat16)
SAMPLED = ("features.0 ", "features.2.", "features.5.", "classifier.")  # steps of the Large at many images


def conv_shapes(images: int, inputs: int, size: int, weight: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {"x": (images, inputs, size, size), "weight": weight, "bias": weight[:1]}


def block_shapes(
    images: int, inputs: int, size: int, widths: tuple[int, int, int], squeezed: int = 0
) -> dict[str, tuple[int, ...]]:
    """Of a block with a residual; widths: expanded channels, the kernel, outputs."""
    expanded, kernel, outputs = widths
    shapes: dict[str, tuple[int, ...]] = {"x": (images, inputs, size, size), "residual": (images, outputs, size, size)}
    shapes |= {"expand_weight": (expanded, inputs, 1, 1), "expand_bias": (expanded,)}
    shapes |= {"weight": (expanded, 1, kernel, kernel), "bias": (expanded,)}
    shapes |= {"project_weight": (outputs, expanded, 1, 1), "project_bias": (outputs,)}
    if squeezed:
        shapes |= {"fc1_weight": (squeezed, expanded), "fc1_bias": (squeezed,)}
        shapes |= {"fc2_weight": (expanded, squeezed), "fc2_bias": (expanded,)}
    return shapes


def of_ops(images: int) -> Iterator[Launches]:
    """What ops launch and plans don't."""
    yield bytes_launches(images)
    yield squeeze_excite_launches(images)
    shapes = conv_shapes(images, 672, 14, (672, 1, 5, 5))
    options = {"stride": 1, "padding": "same", "dilation": 2, "activation": "hardswish"}
    yield op_launches("depthwise_conv", shapes, **options)
    shapes = conv_shapes(images, 672, 7, (160, 672, 1, 1))
    shapes |= {"residual": (images, 160, 7, 7), "scale": (images, 672)}
    yield op_launches("pointwise_conv", shapes, activation=None)


def of_other_networks(images: int) -> Iterator[Launches]:
    """Of blocks of EfficientNet-B0 and MobileNetV2, with activations and a gate that our plans don't have."""
    options = {"stride": 1, "padding": "same", "dilation": 1}
    silu = {"activation": "silu", "squeeze_activation": "silu", "gate": "sigmoid"}
    yield op_launches("inverted_residual", block_shapes(images, 80, 14, (480, 3, 80), squeezed=20), **options, **silu)
    relu6 = {"activation": "relu6", "squeeze_activation": None}
    yield op_launches("inverted_residual", block_shapes(images, 24, 56, (144, 3, 24)), **options, **relu6)
    yield squeeze_excite_launches(images, 1152, 48, activation="silu", gate="sigmoid")


def of_plans(dtype: torch.dtype) -> Iterator[Launches]:
    for variant in VARIANTS:
        for images in (MANY, FEW):
            yield plan_launches(variant, images, dtype)


def cases() -> Launches:
    others = [launches for dtype in OTHERS for launches in of_plans(dtype)]
    ops = [launches for images in (FEW, MANY) for launches in (*of_ops(images), *of_other_networks(images))]
    return distinct([*of_plans(HALF), *ops, *others])


def is_sampled(name: str) -> bool:
    """Whether a launch is of float16, or of those of another dtype that are compiled every time."""
    plan, _, step = name.partition(": ")
    is_half = not any(str(dtype).removeprefix("torch.") in plan for dtype in OTHERS)
    return is_half or (plan.startswith("large ") and plan.endswith(f" x{MANY}") and step.startswith(SAMPLED))


CASES = cases()


def outline(launch: Launch) -> Hashable:
    """Equal for launches that differ only in details."""
    constants = {name: value for name, value in launch.constants.items() if name not in DETAILS}
    return binary(launch._replace(constants=constants))


def on_chips() -> Iterator[pytest.ParameterSet]:
    """Every case on every chip.

    Slow are most of those in other dtypes than float16, and on the older chip all but the first of those that differ
    only in details, and those of other networks.
    """
    seen, others = set(), {name for images in (FEW, MANY) for named in of_other_networks(images) for name in named}
    for name, launch in CASES.items():
        for capability in CHIPS:
            is_slow = not is_sampled(name) or (capability == 80 and (outline(launch) in seen or name in others))
            marks = [pytest.mark.slow] if is_slow else []
            yield pytest.param(name, capability, marks=marks, id=f"{name} sm_{capability}")
        seen.add(outline(launch))


@pytest.mark.parametrize(("name", "capability"), list(on_chips()))
def test_every_launch_compiles_without_spills(name: str, capability: int) -> None:
    compile_within_limits(CASES[name], capability)


SAMPLE = {
    images: [name for name in CASES if name.startswith(f"large x{images}: features.12.")] for images in (FEW, MANY)
}


@pytest.mark.parametrize("capability", [89, 100, 120])
@pytest.mark.parametrize("name", [*SAMPLE[FEW], *SAMPLE[MANY]])
def test_a_sample_compiles_for_other_chips(name: str, capability: int) -> None:
    compile_within_limits(CASES[name], capability)


@pytest.mark.parametrize("capability", [89, 120])
def test_scaled_products_fit_chips_of_little_shared_memory(capability: int) -> None:
    compile_within_limits(CASES["large x128: features.11.block.3 _pointwise_conv_kernel"], capability)


@pytest.mark.parametrize("name", [*SAMPLE[FEW], *(pytest.param(name, marks=pytest.mark.slow) for name in SAMPLE[MANY])])
def test_a_sample_compiles_for_turing(name: str) -> None:
    """sm_75, for which nothing is tuned: large products spill there."""
    compile_launch(CASES[name], 75)
