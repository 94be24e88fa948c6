"""Fixtures: kernels that are wrong on purpose, by the emulation that must see it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

OBJECTS = Path(__file__).parents[2] / "build" / "csrc" / "emulated"


@pytest.fixture(scope="session")
def kernels(emulated_library: Path) -> ctypes.CDLL:
    """kernels.cu, with an emulation of its own."""
    assert emulated_library.is_file()
    loaded = ctypes.CDLL(str(OBJECTS / "libmbv3fast_tests.so"))
    loaded.test_cases.restype = loaded.mbv3fast_error.restype = ctypes.c_char_p
    loaded.mbv3fast_emulate.argtypes = (ctypes.c_int, ctypes.c_uint64)
    loaded.test_launch.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int)
    return loaded
