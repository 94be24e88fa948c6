"""The structs of csrc/network_stage.cuh, which says what fields mean."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64
from typing import Any


def _numbers(names: str) -> tuple[tuple[str, Any], ...]:
    return tuple((name, c_int32) for name in names.split())


class Map(Structure):
    _fields_ = _numbers("at pitch height width channels rows above below group_bits")


class Squeeze(Structure):
    _fields_ = (
        *_numbers("squeezed activation alone slice units rows parts told means hidden scale"),
        ("per_pixel", c_float),
    )


class Stage(Structure):
    """Padded to a multiple of 16 bytes, as the kernel reads it."""

    @property
    def sharing(self) -> int:
        """Blocks of a group."""
        return 1 << int(self.group_bits)

    _fields_ = (
        *_numbers("kind group_bits rows"),
        ("input", Map),
        ("output", Map),
        *_numbers("kernel stride top left expand_activation activation expands adds_input channels step band bound"),
        *_numbers("projected expand_tiles project_tiles expanded expanded_pitch expanded_width"),
        *_numbers("windowed windowed_pitch sums pixels inputs outputs chunks"),
        ("squeeze", Squeeze),
        *_numbers("_0 _1"),
    )


class Chunk(Structure):
    _fields_ = (("offset", c_int64), *_numbers("bytes copies"))


STEM, BLOCK, MEAN, LINEAR = range(4)  # kinds of stages
