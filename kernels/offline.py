"""What the compiler makes of a launch, for any chip and without a GPU."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mbv3fast.launching import Launch

_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.uint8: "u8"}
_OPTIONS = ("num_warps", "num_stages")  # of the compiler; other constants are the kernel's
_OLDEST_PDL = 90  # compute capability


class Compiled(NamedTuple):
    """Of a thread: its registers, and the bytes of its stack, which holds nothing but spilled registers. Of a program:
    the bytes of shared memory.
    """

    registers: int
    spilled: int
    shared: int


def binary(launch: Launch) -> Hashable:
    """What decides a launch's binary on one chip: equal where two launches share it."""
    constants = tuple(sorted(launch.constants.items()))
    dtypes = tuple(sorted((name, str(tensor.dtype)) for name, tensor in _tensors(launch).items()))
    return launch.kernel, constants, dtypes


def compile_launch(launch: Launch, capability: int) -> Compiled:
    """Compile for sm_`capability` what an engine launches there: with programmatic dependent launch where there is it.

    Pointers are taken to be aligned to 16 bytes, as those of whole tensors are.
    """
    kernel, options = launch.kernel, {name: launch.constants[name] for name in _OPTIONS if name in launch.constants}
    constants: dict[str, Any] = {name: value for name, value in launch.constants.items() if name not in options}
    if capability >= _OLDEST_PDL:
        constants |= {"PDL": True}
        options |= {"launch_pdl": True}
    types = {name: f"*{_TYPES[tensor.dtype]}" for name, tensor in _tensors(launch).items()}
    types |= dict.fromkeys(kernel.do_not_specialize, "i32")
    constants |= {name: None for name in kernel.arg_names if name not in types and name not in constants}
    signature = {name: types.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    source = ASTSource(kernel, signature, constants, aligned)
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return Compiled(*_resources(compiled.asm["cubin"]), compiled.metadata.shared)


def _tensors(launch: Launch) -> dict[str, torch.Tensor]:
    return {**launch.reads, **launch.writes}


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack, as the binary itself says, which may come from Triton's cache."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", said)
    if found is None:
        raise RuntimeError(f"cuobjdump says nothing of registers: {said}")
    return int(found[1]), int(found[2])
