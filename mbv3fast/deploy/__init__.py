"""Files that run without this package: AOTInductor's packages (.pt2) and ONNX models (.onnx)."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from mbv3fast.atomic import replacing
from mbv3fast.deploy.aot_package import write_package
from mbv3fast.deploy.check import compare
from mbv3fast.deploy.job import Exported, ExportError, Job
from mbv3fast.deploy.onnx_model import OPSET, write_onnx
from mbv3fast.serving import Served
from mbv3fast.torch_state import fork_safe_lock

__all__ = ["OPSET", "SUFFIXES", "ExportError", "Exported", "export"]

_WRITERS = {".pt2": write_package, ".onnx": write_onnx}
SUFFIXES = tuple(_WRITERS)
_EXPORTING = fork_safe_lock()  # PyTorch's tracers keep their state for the whole process


def export(
    model: Served,
    path: str | os.PathLike[str],
    *,
    size: tuple[int, int] = (224, 224),
    batch: int = 1,
    uint8: bool = False,
    backend: str = "auto",
    opset: int | None = None,
    verify: bool = True,
) -> Exported:
    """Write a model in eval mode as a file that runs without this package, and try that in a fresh process.

    path: to a .pt2, which `torch._inductor.aoti_load_package` loads in Python and AOTIModelPackageLoader in C++, or an
    .onnx file. It appears whole or not at all. A .pt2 takes contiguous tensors, and checks its input only where the
    environment says AOTI_RUNTIME_CHECK_INPUTS=1.
    size: height and width of its input; an .onnx takes others too. batch: the images that launches are configured for;
    any number of them runs.
    uint8: whether the input is bytes [N, H, W, C], which are normalised as by `model.transforms()`, or floats
    [N, C, H, W] of the weights' dtype.
    backend: of a .pt2, "triton", our kernels compiled for the GPU that the model is on (on a CPU in Triton's
    interpreter, whose package needs `import mbv3fast.ops`); "torch", PyTorch's operators on folded weights, compiled by
    Inductor for the model's device; "auto", our kernels on a GPU that they serve, else PyTorch's.
    An .onnx has PyTorch's operators alone.
    opset: of an .onnx, 22 by default; from 18 to the newest that the installed onnx knows.
    verify: compares what the file puts out, of a few random batches, with the modules in float64.

    Raises TypeError for a model of another make and ValueError for other arguments, ExportError where the file can't be
    made or computes something else, BackendError where who was asked for can't serve, UnsupportedError where the model
    can't be folded.
    """
    target = Path(path)
    if target.suffix not in _WRITERS:
        raise ValueError(f"path: got {target}, needs the suffix {' or '.join(_WRITERS)}")
    try:
        folder = target.resolve().parent  # where a link leads
    except (OSError, RuntimeError) as error:
        raise ValueError(f"path: got {target}: {error}") from error
    if not folder.is_dir():
        raise ValueError(f"path: got {target}, whose folder does not exist")
    if target.is_dir():
        raise ValueError(f"path: got {target}, which is a folder")
    if not os.access(folder, os.W_OK):
        raise ValueError(f"path: got {target}, whose folder can't be written")
    if opset is not None and target.suffix != ".onnx":
        raise ValueError(f"opset: got {opset}, only an .onnx has one")
    job = Job.of(model, size, batch, uint8, backend, OPSET if opset is None else opset, verify)
    with _EXPORTING, tempfile.TemporaryDirectory(prefix="mbv3fast-export-") as workplace:
        file = Path(workplace, target.name)  # whose suffix its readers go by
        written = _WRITERS[target.suffix](job, file)
        found, tried = compare(job, file, written) if verify else (None, ())
        with replacing(target) as temporary:
            shutil.copyfile(file, temporary)
    return Exported(target, written.contents, job.signature(written), target.stat().st_size, found, tried)
