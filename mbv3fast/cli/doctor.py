"""`mbv3fast doctor`: what is installed, what runs where, and why."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

import click
import torch

from mbv3fast._version import __version__
from mbv3fast.backend import BACKENDS, SERVED_DTYPES, BackendError, decide, network_server, op_server, requested
from mbv3fast.cuda.library import architectures, lacks_loading, library_path
from mbv3fast.ops import OPS

_EXTRAS = {
    "huggingface_hub": "hf-hub:… weights: pip install 'mbv3fast[hub]'",
    "pyarrow": ".parquet output: pip install 'mbv3fast[parquet]'",
    "sklearn": "training the digits example: pip install 'mbv3fast[train]'",
}


@click.command(short_help="Say what runs where, and why.")
def doctor() -> None:
    """Print versions, devices, which backend serves which op and why, and what to install for more."""
    click.echo("versions")
    for name in ("torch", "triton", "numpy", "safetensors", "pillow"):
        _line(name, _version(name))
    _line("mbv3fast", __version__)
    _line("python", platform.python_version())
    click.echo("devices")
    for device in _devices():
        click.echo(f"  {device}")
    click.echo("backends")
    for backend in BACKENDS:
        _line(backend, _serves(backend))
    _line("library of cuda", _library())
    for device in dict.fromkeys(("cpu", "cuda" if torch.cuda.is_available() else "cpu")):
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in SERVED_DTYPES)
        click.echo(f"on {device}, in {names}")
        _line("a network", network_server(torch.device(device), torch.float32))
        for op in sorted(OPS):
            _line(op, op_server(torch.device(device), torch.float32))
    missing = [hint for module, hint in _EXTRAS.items() if importlib.util.find_spec(module) is None]
    click.echo("to install for more")
    for hint in missing or ["nothing: every optional package is there"]:
        click.echo(f"  {hint}")


def _line(name: str, value: str) -> None:
    click.echo(f"  {name:<25} {value}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _serves(backend: str) -> str:
    try:
        request = requested(backend)
        dtype = torch.float16 if request.name == "cuda" else torch.float32  # which its kernels don't take
        decide(request, torch.device("cuda" if torch.cuda.is_available() else "cpu"), dtype)
    except (BackendError, ValueError) as error:
        return f"no: {error}"
    return "yes" if request.name == backend else f"yes, as {request.name}"


def _library() -> str:
    lack = lacks_loading()
    return f"no: {lack}" if lack else f"for {architectures() or 'the CPU, emulated'}: {library_path()}"


def _devices() -> list[str]:
    capability = torch.backends.cpu.get_cpu_capability()
    lines = [f"cpu: {platform.machine()}, {capability}, {torch.get_num_threads()} threads"]
    if not torch.cuda.is_available():
        built = torch.version.cuda or "none: a CPU build of torch"
        return [*lines, f"no GPU (CUDA in this torch: {built})"]
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        lines.append(f"cuda:{index}: {gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / 2**30:.0f} GiB")
    return lines
