"""The structs of csrc/network_stage.cuh, which says what fields mean."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64
from typing import Any


def _numbers(names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, c_int32) for name in names.split())


class Map(Structure):
    _fields_ = _numbers("at pitch height width channels rows above below")


class Squeeze(Structure):
    _fields_ = (
        *_numbers("squeezed activation shared slice units rows parts told means hidden scale"),
        ("per_pixel", c_float),
    )


class Stage(Structure):
    """Padded to a multiple of 16 bytes, as the kernel reads it."""

    _fields_ = (
        *_numbers("kind rows"),
        ("input", Map),
        ("output", Map),
        *_numbers("kernel stride top left expand_activation activation expands adds_input channels step band bound"),
        *_numbers("projected expanded expanded_pitch expanded_width windowed windowed_pitch sums pixels"),
        *_numbers("inputs outputs chunks"),
        ("squeeze", Squeeze),
        *_numbers("_0 _1 _2"),
    )


class Chunk(Structure):
    _fields_ = (("offset", c_int64), *_numbers("bytes apart"))


STEM, ROWS, CHANNELS, MEAN, LINEAR = range(5)  # kinds of stages
