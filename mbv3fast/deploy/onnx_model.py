"""ONNX models: the modules of the reference as ONNX's operators."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mbv3fast.agreement import OTHERS_FACTOR
from mbv3fast.deploy.job import ExportError, Job, Written, leaves
from mbv3fast.description import METADATA_KEY
from mbv3fast.serving import Served

OPSET = 22
_OLDEST = 18  # PyTorch's operators are written in it, and converted to later ones


def write_onnx(job: Job, path: Path) -> Written:
    """Write an .onnx of `job`, for any batch and any size. Raises as `export`."""
    if job.backend not in ("auto", "torch"):
        raise ValueError(f"backend: got {job.backend!r}, an .onnx has PyTorch's operators alone: 'torch' or 'auto'")
    if job.like.dtype not in (torch.float32, torch.float16):
        raise ValueError(f"model: is {job.like.dtype}, an .onnx needs float32 or float16, since runtimes have no other")
    needed = ("onnx", "onnxscript", *(("onnxruntime",) if job.verify else ()))
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f".onnx: needs {' and '.join(missing)}: pip install 'mbv3fast[onnx]'")
    import onnx  # which not everybody has

    newest = onnx.defs.onnx_opset_version()
    if not _OLDEST <= job.opset <= newest:
        raise ValueError(f"opset: got {job.opset}, needs {_OLDEST} to {newest}, the newest of the installed onnx")
    height, width = (1, 2) if job.uint8 else (2, 3)
    with torch.no_grad():
        names = _names(len(leaves(_Reference(job.model)(job.images(1)))))
    try:
        with torch.no_grad(), _quietly():
            program = torch.onnx.export(
                _Reference(job.model),
                (job.images(2),),
                dynamo=True,
                verbose=False,
                opset_version=job.opset,
                input_names=["x"],
                output_names=names,
                dynamic_shapes=({0: "batch", height: "height", width: "width"},),
            )
            assert program is not None
            program.model.metadata_props[METADATA_KEY] = job.model.description().to_json()
            written = program.model.opset_imports[""]
            program.save(str(path))
    except Exception as error:  # whatever a tracer or a converter may say
        raise ExportError(f".onnx: PyTorch can't export it: {error}") from error
    if written != job.opset:
        raise ExportError(f".onnx: opset {job.opset} was asked for, PyTorch wrote {written}")
    contents = f"ONNX's operators, opset {job.opset}, any height and width"
    return Written(contents, None, any_size=True, factor=OTHERS_FACTOR)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without PyTorch's own deprecations, and what it says of torchvision's ops, which aren't used."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


class _Reference(nn.Module):
    """A model's forward by its modules."""

    def __init__(self, model: Served) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Any:
        return self.model.reference_forward(x)


def _names(count: int) -> list[str]:
    return ["out"] if count == 1 else [f"map_{index}" for index in range(count)]
