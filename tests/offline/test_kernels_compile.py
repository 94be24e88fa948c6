"""Every kernel compiles at every shape of both networks, for few images and for many, without spills."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from mbv3fast.config import NetworkConfig, network
from tests.offline.compiling import REGISTERS, SHARED_LIMIT, compile_kernel

configs = pytest.importorskip("mbv3fast.kernels.configs")
depthwise_conv = pytest.importorskip("mbv3fast.kernels.depthwise_conv")
depthwise_project = pytest.importorskip("mbv3fast.kernels.depthwise_project")
linear = pytest.importorskip("mbv3fast.kernels.linear")
pointwise_conv = pytest.importorskip("mbv3fast.kernels.pointwise_conv")
squeeze_excite = pytest.importorskip("mbv3fast.kernels.squeeze_excite")
stem_conv = pytest.importorskip("mbv3fast.kernels.stem_conv")

HALF, FLOAT = "*fp16", "*fp32"
WIDE = {"bias", "project_bias", "scale", "pool", "hidden", "fc1_bias", "fc2_bias", "shift", "factor"}
Case = tuple[str, Any, dict[str, Any], frozenset[str]]  # name, kernel, constants, float32 tensors beside WIDE


def case(name: str, kernel: Any, wide: tuple[str, ...] = (), **constants: Any) -> Case:
    return name, kernel, constants, frozenset(wide)


def cases(config: NetworkConfig, images: int) -> list[Case]:
    """The launches of a forward at 224x224, each with its configuration."""
    pixels, size = [], 112
    found = [
        case(
            "stem",
            stem_conv._stem_conv_kernel,
            ("weight",),
            C=3,
            N=config.stem,
            KERNEL=3,
            STRIDE=2,
            ACTIVATION=config.activation,
            BLOCK_N=16,
            **{"shift": None, "factor": None, **configs.stem_conv(images, size * size)},
        )
    ]
    for index, block in enumerate(config.blocks):
        found += block_cases(f"block {index}", block, images, size)
        size //= block.stride
        pixels.append(size * size)
    last, hidden = config.last_convs[0], config.hidden
    found.append(pointwise("last conv", images, 49, config.blocks[-1].out_channels, last, "hardswish", out=None))
    for name, inputs, outputs in (("classifier.0", last, hidden), ("classifier.3", hidden, 1000)):
        options = {"K": inputs, "N": outputs, "ACTIVATION": None, "TF32": False}
        launch = configs.linear(images, outputs, inputs, 2)
        found.append(case(name, linear._linear_kernel, ("x",) if inputs == last else (), **options, **launch))
    return found


def block_cases(name: str, block: Any, images: int, size: int) -> list[Case]:
    out_size, width = size // block.stride, block.expanded
    found = []
    if block.has_expand:
        found.append(
            pointwise(f"{name} expand", images, size * size, block.in_channels, width, block.activation, pool=None)
        )
    taps = {"KERNEL": block.kernel, "STRIDE": block.stride, "DILATION": 1, "ACTIVATION": block.activation, "C": width}
    if not block.squeeze:
        residual = {} if block.has_residual else {"residual": None}
        launch = configs.depthwise_project(images, out_size, out_size, block.kernel)
        columns = {"N": block.out_channels, "BLOCK_N": configs.power_of_2(block.out_channels, 16, 1024), "TF32": False}
        kernel = depthwise_project._depthwise_project_kernel
        return [*found, case(f"{name} depthwise, project", kernel, **taps, **columns, **residual, **launch)]
    launch = configs.depthwise_conv(images, out_size, out_size, width, block.kernel, block.squeeze)
    tiles = -(-out_size // launch["TILE_H"]) * -(-out_size // launch["TILE_W"])
    excite = configs.excite(tiles * -(-width // launch["BLOCK_C"]), width)
    excite["BLOCK_S"] = configs.power_of_2(block.squeeze, 1, 1024)
    squeeze = {"C": width, "S": block.squeeze, "ACTIVATION": "relu"}
    project = (images, out_size * out_size, width, block.out_channels, None)
    return [
        *found,
        case(f"{name} depthwise", depthwise_conv._depthwise_conv_kernel, **taps, S=block.squeeze, pool=None, **launch),
        case(f"{name} excite", squeeze_excite._excite_kernel, **squeeze, **excite),
        pointwise(f"{name} project", *project, pool=None, residual=() if block.has_residual else None, scaled=True),
    ]


def pointwise(
    name: str, images: int, pixels: int, inputs: int, outputs: int, activation: str | None, **absent: Any
) -> Case:
    constants = {key: None for key in ("out", "pool", "residual") if absent.get(key, ()) is None}
    constants |= {} if "residual" in absent else {"residual": None}
    constants |= {} if absent.get("scaled") else {"scale": None}
    launch = configs.pointwise_conv(images * pixels, outputs, inputs, 2)
    shape = {"K": inputs, "N": outputs, "ACTIVATION": activation, "TF32": False}
    return case(name, pointwise_conv._pointwise_conv_kernel, **shape, **constants, **launch)


def distinct() -> dict[str, tuple[Any, dict[str, Any], frozenset[str]]]:
    """The launches of both networks' forwards by name, of equal ones the first."""
    found: dict[str, tuple[Any, dict[str, Any], frozenset[str]]] = {}
    seen = set()
    for variant, images in itertools.product(("large", "small"), (1, 128)):
        for name, kernel, constants, wide in cases(network(variant), images):  # type: ignore[arg-type]
            key = (kernel, *sorted(constants.items(), key=str))
            if key not in seen:
                seen.add(key)
                found[f"{variant} x{images}: {name}"] = kernel, constants, wide
    return found


CASES = distinct()


def types(kernel: Any, wide: frozenset[str]) -> dict[str, str]:
    """Pointers by whether they are float32; sizes are the arguments that a kernel doesn't specialise on."""
    sizes = set(kernel.do_not_specialize)
    return {a: "i32" if a in sizes else FLOAT if a in WIDE | wide else HALF for a in kernel.arg_names}


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", CASES)
def test_kernels_compile_without_spills(name: str, capability: int) -> None:
    kernel, constants, wide = CASES[name]
    compiled = compile_kernel(kernel, types(kernel, wide), constants, capability)
    assert compiled.spilled == 0
    assert compiled.registers <= REGISTERS
    assert compiled.shared <= SHARED_LIMIT[capability] * 1024


SAMPLE = [name for name in CASES if "large x128: block 12" in name or "large x1: block 12" in name]


@pytest.mark.parametrize("capability", [89, 100, 120])
@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_compiles_for_other_chips(name: str, capability: int) -> None:
    test_kernels_compile_without_spills(name, capability)


@pytest.mark.parametrize("name", SAMPLE)
def test_a_sample_compiles_for_turing(name: str) -> None:
    """sm_75, for which nothing is tuned: large products spill there."""
    kernel, constants, wide = CASES[name]
    compile_kernel(kernel, types(kernel, wide), constants, 75)
