"""What a chip can hold of a kernel, and that a launch fits; whoever imports this compiles, and can't interpret."""

from __future__ import annotations

import os

import pytest

if os.environ.get("TRITON_INTERPRET") != "0":  # only one of interpreting and compiling works in a process
    pytest.skip("needs TRITON_INTERPRET=0: `make test-kernels`", allow_module_level=True)
pytest.importorskip("triton")

from mbv3fast.kernels.offline import Compiled, binary, compile_launch
from mbv3fast.launching import Launch, watch_launches

__all__ = ["REGISTERS", "SHARED_LIMIT", "Launch", "binary", "compile_launch", "compile_within_limits", "watch_launches"]

SHARED_LIMIT = {75: 64, 80: 163, 89: 99, 90: 227, 100: 227, 120: 99}  # KB a program may have
REGISTERS = 255  # a thread may have


def compile_within_limits(launch: Launch, capability: int) -> Compiled:
    """Compile for sm_`capability`: no register is spilled, and a program has what the chip gives it."""
    compiled = compile_launch(launch, capability)
    assert compiled.spilled == 0
    assert compiled.registers <= REGISTERS
    assert compiled.shared <= SHARED_LIMIT[capability] * 1024
    return compiled
