"""Compiling a kernel without a GPU, and what the compiler says of it."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest

if os.environ.get("TRITON_INTERPRET") != "0":  # only one of interpreting and compiling works in a process
    pytest.skip("needs TRITON_INTERPRET=0: `make test-kernels`", allow_module_level=True)
triton = pytest.importorskip("triton")
compiler = pytest.importorskip("triton.compiler")
targets = pytest.importorskip("triton.backends.compiler")

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
SHARED_LIMIT = {75: 64, 80: 163, 89: 99, 90: 227, 100: 227, 120: 99}  # KB a program may have
REGISTERS = 255  # a thread may have
ACCELERATED = (90, 100, 120)  # whose PTX needs the "a" of the architecture


class Compiled(NamedTuple):
    registers: int
    spilled: int  # bytes
    shared: int  # bytes


def compile_kernel(kernel: Any, types: dict[str, str], constants: dict[str, Any], capability: int) -> Compiled:
    """Compile for sm_`capability`; `types` of the arguments, of which those in `constants` are compile-time ones.

    Constants may hold num_warps and num_stages. Programmatic dependent launch is on where the chip has it.
    """
    options = {name: constants[name] for name in ("num_warps", "num_stages") if name in constants}
    pdl = capability >= 90
    constants = {name: constants[name] for name in constants if name not in options} | {"PDL": pdl}
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = compiler.ASTSource(kernel, signature, constants, aligned)
    target = targets.GPUTarget("cuda", capability, 32)
    compiled = triton.compile(source, target=target, options={**options, **({"launch_pdl": True} if pdl else {})})
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder, "kernel.ptx")
        ptx.write_text(compiled.asm["ptx"])
        name = f"sm_{capability}{'a' if capability in ACCELERATED else ''}"
        assembler = TOOLS / ("ptxas-blackwell" if capability >= 100 else "ptxas")
        command = [assembler, "-v", "--gpu-name", name, ptx, "-o", os.devnull]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    used, spilled = re.search(r"Used (\d+) registers", said), re.search(r"(\d+) bytes spill stores", said)
    assert used is not None
    assert spilled is not None
    return Compiled(int(used[1]), int(spilled[1]), compiled.metadata.shared)
