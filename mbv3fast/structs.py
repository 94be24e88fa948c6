"""The structs of the CUDA library's C API, as csrc/include/mbv3fast.h declares them; what fields mean is said there."""

from __future__ import annotations

from ctypes import Structure, c_int32, c_int64, c_void_p


class DepthwiseConvArgs(Structure):
    _fields_ = (
        ("x", c_void_p),
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("out", c_void_p),
        ("pool", c_void_p),
        ("images", c_int64),
        ("height", c_int32),
        ("width", c_int32),
        ("out_height", c_int32),
        ("out_width", c_int32),
        ("channels", c_int32),
        ("kernel", c_int32),
        ("stride", c_int32),
        ("top", c_int32),
        ("left", c_int32),
        ("dtype", c_int32),
        ("activation", c_int32),
        ("tile_height", c_int32),
        ("tile_width", c_int32),
        ("groups", c_int32),
        ("overlapped", c_int32),
    )
