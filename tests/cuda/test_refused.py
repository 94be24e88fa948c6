"""What functions of the C API refuse beside what Python's launchers can pass: each argument by its name."""

from __future__ import annotations

import ctypes

import pytest
import torch

from mbv3fast.cluster.table import Stage
from mbv3fast.cuda.structs import DepthwiseConvArgs, InvertedResidualArgs, NetworkArgs, PointwiseConvArgs

REFUSED = 10001
INT_MAX = 2**31 - 1
BUFFER = torch.zeros(4096)
ONE_PIXEL = dict.fromkeys(("images", "height", "width", "out_height", "out_width", "stride", "dtype", "activation"), 1)
RIGHT: dict[str, tuple[type[ctypes.Structure], str, dict[str, int]]] = {
    "depthwise_conv": (
        DepthwiseConvArgs,
        "x weight bias out",
        {**ONE_PIXEL, "channels": 8, "kernel": 3, "tile_height": 4, "tile_width": 8, "groups": 4},
    ),
    "inverted_residual": (
        InvertedResidualArgs,
        "x expand_weight expand_bias weight bias project_weight project_bias out",
        {**ONE_PIXEL, "inputs": 24, "channels": 32, "outputs": 24, "kernel": 3, "tile_height": 4, "tile_width": 8}
        | {"step": 32, "splits": 1},
    ),
    "pointwise_conv": (
        PointwiseConvArgs,
        "x weight bias out",
        {"images": 1, "pixels": 1, "dtype": 1, "inputs": 8, "outputs": 8, "tile_rows": 16, "tile_outputs": 16},
    ),
    "network": (  # no images, since tables that name no stage can't be run
        NetworkArgs,
        "weights stages chunks out",
        {
            **dict.fromkeys(("channels", "height", "width", "outputs", "stage_count", "chunk_count", "dtype"), 1),
            "x": BUFFER.data_ptr(),
            "stage_bytes": ctypes.sizeof(Stage),
            "cluster": 16,
            "clusters": 1,
            "weight_bytes": 16,
            "slot": 16,
            "shared_bytes": 48 + ctypes.sizeof(Stage),
        },
    ),
}
WRONG = {
    "depthwise_conv": [
        ("x", None, "got null"),
        ("weight", None, "got null"),
        ("bias", None, "got null"),
        ("out", None, "got null"),
        ("images", -1, "got -1, needs 0 or more"),
        ("images", 1 << 40, "blocks: got"),
        ("images", 1 << 62, "got 4611686018427387904, needs fewer"),
        ("height", 0, "height, width: got 0, needs 1 or more each"),
        ("width", -3, "height, width: got -3, needs 1 or more each"),
        ("width", 1 << 30, "height, width: got 1073741824, needs fewer than 2^30"),
        ("out_height", 0, "out_height, out_width: got 0, needs 1 or more each"),
        ("out_width", INT_MAX, "out_height, out_width: got 2147483647, needs fewer than 2^30"),
        ("channels", 0, "got 0, needs a multiple of 8"),
        ("channels", INT_MAX - 7, "got 2147483640, needs no more than 2^20"),
        ("kernel", 0, "got 0, needs 3 or 5"),
        ("top", 3, "got 3, needs less than the kernel"),
        ("dtype", 0, "got 0, needs float16 or bfloat16"),
        ("dtype", 3, "got 3, needs float16 or bfloat16"),
        ("activation", 3, "got 3, needs none, relu or hardswish"),
        ("activation", -1, "got -1, needs none, relu or hardswish"),
        ("groups", 1 << 30, "got 1073741824, needs 1 to 512"),
        ("groups", 3, "tile_height * tile_width / 4 * groups: got 24, needs a multiple of 32"),
        ("tile_height", 0, "got 0, needs 1 to 512"),
        ("tile_width", 6, "got 6, needs a multiple of 4"),
    ],
    "inverted_residual": [
        ("images", -1, "got -1, needs 0 or more"),
        ("images", 1 << 40, "blocks: got"),
        ("images", 1 << 62, "got 4611686018427387904, needs fewer"),
        ("height", 0, "height, width: got 0, needs 1 or more each"),
        ("out_width", 0, "out_height, out_width: got 0, needs 1 or more each"),
        ("out_height", INT_MAX, "out_height, out_width: got 2147483647, needs fewer"),
        ("channels", INT_MAX - 7, "got 2147483640, needs no more than 2^20"),
        ("inputs", 1 << 17, "got 131072, needs no more than 2^16"),
        ("inputs", 1 << 16, "got 65536, needs fewer: a block has 232448 bytes of shared memory"),
        ("kernel", 0, "got 0, needs 3 or 5"),
        ("stride", 0, "got 0, needs 1 or 2"),
        ("activation", 7, "got 7, needs none"),
        ("splits", 0, "got 0, needs 1 or more"),
        ("outputs", 0, "got 0, needs a multiple of 8"),
        ("inputs", -8, "got -8, needs a multiple of 8"),
        ("dtype", 0, "got 0, needs float16 or bfloat16"),
        ("project_weight", None, "pool: got null"),
        ("expand_weight", None, "inputs: got 24, needs as many as channels"),
        ("residual", 8, "residual: needs to be aligned to 16 bytes"),
        ("step", 16, "tile_height, tile_width, step, outputs: no such tile"),
    ],
    "pointwise_conv": [
        ("images", -1, "got -1, needs 0 or more"),
        ("images", 1 << 40, "images * pixels: got"),
        ("images", 1 << 62, "got 4611686018427387904, needs fewer"),
        ("pixels", INT_MAX, "got 2147483647, needs 1 or more, fewer than 2^30"),
        ("inputs", 1 << 30, "got 1073741824, needs no more than 2^20"),
        ("pixels", 0, "got 0, needs 1 or more"),
        ("inputs", 0, "got 0, needs a multiple of 8"),
        ("outputs", -8, "got -8, needs a multiple of 8"),
        ("dtype", 3, "got 3, needs float16 or bfloat16"),
        ("activation", 3, "got 3, needs none, relu or hardswish"),
        ("tile_rows", 0, "tile_rows, tile_outputs: got 0, 16"),
    ],
    "network": [
        ("x", None, "got 0, needs a tensor"),
        ("along_rows", -1, "along_..: got -1, needs 0 or more, fewer than 2^40"),
        ("along_images", 1 << 62, "along_..: got 4611686018427387904, needs 0 or more, fewer than 2^40"),
        ("images", 1 << 40, "got 1099511627776, needs 0 or more, fewer than 2^31"),
        ("stages", None, "got null"),
        ("takes_bytes", 1, "factor: got null"),
        ("images", -1, "got -1, needs 0 or more, fewer than 2^31"),
        ("channels", 5, "got 5, needs 1 to 4"),
        ("width", 0, "height, width: got 0, needs 1 or more each"),
        ("stage_count", 0, "got 0, needs 1 or more"),
        ("stage_bytes", 8, f"got 8, needs {ctypes.sizeof(Stage)}"),
        ("chunk_count", 0, "got 0, needs 1 or more"),
        ("outputs", 0, "got 0, needs 1 or more"),
        ("weight_bytes", 8, "got 8, needs a multiple of 16"),
        ("slot", 0, "got 0, needs a multiple of 16"),
        ("shared_bytes", 48, f"got 48, needs {48 + ctypes.sizeof(Stage)} for slots and stages"),
        ("cluster", 12, "got 12, needs 1, 2, 4, 8 or 16"),
        ("clusters", 0, "got 0, needs 1 to 2^16"),
        ("dtype", 3, "got 3, needs float16 or bfloat16"),
    ],
}


def call(library: ctypes.CDLL, name: str, **changed: int | None) -> tuple[int, str]:
    """A right call but for what is changed: its code, and the library's words."""
    struct, pointers, numbers = RIGHT[name]
    args = struct(**dict.fromkeys(pointers.split(), BUFFER.data_ptr()), **numbers)
    for field, value in changed.items():
        setattr(args, field, value)
    code = getattr(library, f"mbv3fast_{name}")(ctypes.byref(args), None)
    return code, library.mbv3fast_error(code).decode()


@pytest.mark.parametrize("name", RIGHT)
def test_right_calls(emulation: ctypes.CDLL, name: str) -> None:
    assert call(emulation, name) == (0, "no error")
    assert call(emulation, name, images=0) == (0, "no error")


@pytest.mark.parametrize(
    ("name", "field", "value", "words"), [(name, *wrong) for name, cases in WRONG.items() for wrong in cases]
)
def test_wrong_ones(emulation: ctypes.CDLL, name: str, field: str, value: int | None, words: str) -> None:
    code, said = call(emulation, name, **{field: value})
    assert code == REFUSED
    assert said.startswith(f"{name}: ")
    assert (words if ": " in words else f"{field}: {words}") in said


@pytest.mark.parametrize(("name", "field"), [(name, field) for name in RIGHT for field in RIGHT[name][1].split()])
def test_addresses_that_are_not_aligned(emulation: ctypes.CDLL, name: str, field: str) -> None:
    code, said = call(emulation, name, **{field: BUFFER.data_ptr() + 8})
    assert (code, said) == (REFUSED, f"{name}: {field}: needs to be aligned to 16 bytes")


@pytest.mark.parametrize(("field", "off", "needed"), [("x", 1, 2), ("stamps", 4, 8)])
def test_a_network_of_crooked_addresses(emulation: ctypes.CDLL, field: str, off: int, needed: int) -> None:
    code, said = call(emulation, "network", **{field: BUFFER.data_ptr() + off})
    assert (code, said) == (REFUSED, f"network: {field}: got {off}, needs an address that is a multiple of {needed}")


def test_a_network_on_a_chip_without_clusters(emulation: ctypes.CDLL) -> None:
    emulation.mbv3fast_emulate(80, 0)
    code, said = call(emulation, "network")
    assert (code, said) == (REFUSED, "network: compute capability: got 8.0, needs 9.0 or more: clusters of blocks")
    clusters = ctypes.c_int32(-1)
    assert emulation.mbv3fast_network_clusters(16, 1024, 1, ctypes.byref(clusters)) == clusters.value == 0


def test_a_scale_that_shared_memory_has_no_room_for(emulation: ctypes.CDLL) -> None:
    code, said = call(emulation, "pointwise_conv", scale=BUFFER.data_ptr(), inputs=60_000)
    assert code == REFUSED
    assert said == "pointwise_conv: inputs: got 60000, needs fewer: a block has 232448 bytes of shared memory"


@pytest.mark.parametrize(
    "changed",
    [{"stride": 2}, {"inputs": 32}, {"height": 2}, {"residual": BUFFER.data_ptr()}, {"project_weight": None}],
)
def test_an_input_that_cannot_be_added(emulation: ctypes.CDLL, changed: dict[str, int | None]) -> None:
    assert call(emulation, "inverted_residual", adds_input=1) == (0, "no error")
    pool = {"pool": BUFFER.data_ptr()} if "project_weight" in changed else {}
    code, said = call(emulation, "inverted_residual", adds_input=1, **changed, **pool)
    assert code == REFUSED
    assert said == "inverted_residual: adds_input: got 1, needs an output like x, and no other residual"


def test_an_input_that_comes_in_several_steps(emulation: ctypes.CDLL) -> None:
    """It isn't in shared memory in the end."""
    same = {"expand_weight": None, "adds_input": 1, "step": 16, "tile_height": 8, "tile_width": 16}
    assert call(emulation, "inverted_residual", inputs=16, channels=16, outputs=16, **same)[0] == 0
    code, said = call(emulation, "inverted_residual", inputs=32, channels=32, outputs=32, **same)
    assert code == REFUSED
    assert said == "inverted_residual: adds_input: got 1, needs one step where nothing is expanded"
