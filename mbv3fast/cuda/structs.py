"""The structs of the CUDA library's C API, as csrc/include/mbv3fast.h declares them; what fields mean is said there."""

from __future__ import annotations

from ctypes import Structure, c_int32, c_int64, c_void_p
from typing import Any


def _fields(pointers: str, numbers: str) -> tuple[tuple[str, Any], ...]:
    """Pointers, the number of images, then other numbers."""
    return (
        *((name, c_void_p) for name in pointers.split()),
        ("images", c_int64),
        *((name, c_int32) for name in numbers.split()),
    )


class DepthwiseConvArgs(Structure):
    _fields_ = _fields(
        "x weight bias out pool",
        "height width out_height out_width channels kernel stride top left dtype activation "
        "tile_height tile_width groups overlapped",
    )


class InvertedResidualArgs(Structure):
    _fields_ = _fields(
        "x expand_weight expand_bias weight bias project_weight project_bias residual out pool",
        "height width out_height out_width inputs channels outputs kernel stride top left dtype activation "
        "tile_height tile_width step splits adds_input overlapped",
    )


class PointwiseConvArgs(Structure):
    _fields_ = _fields(
        "x scale weight bias residual out",
        "pixels inputs outputs dtype activation tile_rows tile_outputs overlapped",
    )


class ExciteArgs(Structure):
    _fields_ = _fields(
        "pool fc1_weight fc1_bias fc2_weight fc2_bias hidden scale",
        "tiles pixels channels squeezed dtype activation cluster images_per_cluster overlapped",
    )


class SqueezeExciteArgs(Structure):
    _fields_ = _fields(
        "x fc1_weight fc1_bias fc2_weight fc2_bias out pool hidden scale",
        "pixels channels squeezed dtype activation cluster images_per_cluster overlapped",
    )


class NetworkArgs(Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("x", "factor", "shift", "weights", "stages", "chunks", "out", "stamps")),
        ("images", c_int64),
        *((f"along_{axis}", c_int64) for axis in ("images", "channels", "rows", "columns")),
        ("weight_bytes", c_int64),
        *(
            (name, c_int32)
            for name in (
                *("channels", "height", "width", "outputs", "takes_bytes", "stage_count", "chunk_count", "stage_bytes"),
                *("cluster", "clusters", "slot", "shared_bytes", "dtype", "overlapped"),
            )
        ),
    )
