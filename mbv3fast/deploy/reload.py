"""Runs an exported file in a process that knows nothing of mbv3fast: `reload.py FILE INPUTS OUTPUTS [MODULE …]`.

INPUTS is a list of tensors as torch.save writes it, OUTPUTS becomes a list of lists. MODULEs are imported first. It is
also what a reader of exported files has to do, in full.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils import _pytree


def main(file: str, inputs: str, outputs: str, *modules: str) -> None:
    for module in modules:
        importlib.import_module(module)
    run = load_onnx(file) if file.endswith(".onnx") else load_package(file)
    with torch.no_grad():
        torch.save([list(run(x)) for x in torch.load(inputs, weights_only=True)], outputs)
    if not modules and "mbv3fast" in sys.modules:
        sys.exit(f"{file} needs mbv3fast")


def load_package(file: str) -> Callable[[torch.Tensor], Sequence[Any]]:
    """An AOTInductor package, whose device was settled when it was made."""
    os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"  # else it takes any input for what it was made for
    package = torch._inductor.aoti_load_package(file)
    return lambda x: _pytree.tree_leaves(package(x))


def load_onnx(file: str) -> Callable[[torch.Tensor], Sequence[Any]]:
    """An ONNX model on the CPU."""
    runtime = importlib.import_module("onnxruntime")
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda x: [torch.from_numpy(out) for out in session.run(None, {"x": x.cpu().numpy()})]


if __name__ == "__main__":
    main(*sys.argv[1:])
