"""`mbv3fast doctor`: what is installed, what runs where, and why."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch

from mbv3fast._version import __version__
from mbv3fast.backend import (
    BACKENDS,
    PLANS,
    SERVED_DTYPES,
    BackendError,
    decide,
    lacks_network,
    lacks_trusted_cuda,
    network_server,
    op_server,
    requested,
)
from mbv3fast.clearance import commit_trial, keep_trial, tried, untried
from mbv3fast.cuda.library import architectures, lacks_loading, library_path, library_sources, sources_here
from mbv3fast.ops import OPS
from mbv3fast.trial import cases, try_in_process

_EXTRAS = {
    "huggingface_hub": "hf-hub:… weights: pip install 'mbv3fast[hub]'",
    "pyarrow": ".parquet output: pip install 'mbv3fast[parquet]'",
    "sklearn": "training the digits example: pip install 'mbv3fast[train]'",
}


@click.command(short_help="Say what runs where, and why.")
@click.option("--check", is_flag=True, help="Try every plan on the GPU first, and keep what becomes of it.")
@click.option(
    "--limit", type=click.FloatRange(0, min_open=True), default=600, show_default=True, help="Seconds a plan."
)
@click.option("--plan", "plans", type=click.Choice(PLANS), multiple=True, default=PLANS, help="Of these.")
@click.option("--commit", type=click.Path(dir_okay=False, path_type=Path), help="Also add what passes to this file.")
def doctor(check: bool, limit: float, plans: tuple[str, ...], commit: Path | None) -> None:
    """Print versions, devices, which backend serves which op and why, and what to install for more.

    --check tries plans "layers" (Triton), "blocks" and "network" (CUDA), each in a process of its own, on both
    networks, against references in float64; where one fails, the exit code is 1. Of "layers" and "blocks" `auto` may
    choose what passes from then on, with this driver, these versions and these kernels, and not what fails; "network"
    it never chooses in this version. With --commit a passing plan "blocks" is added to the file that the package has
    for all GPUs of its compute capability, mbv3fast/cuda/cleared.json.
    """
    if commit and not check:
        raise click.UsageError("--commit needs --check")
    if commit and not torch.cuda.is_available():
        raise click.UsageError("--commit needs a GPU, for whose compute capability it speaks")
    failed = check and not _try_plans(plans, limit, commit)
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
    if torch.cuda.is_available():
        _print_choices(torch.device("cuda", torch.cuda.current_device()))
    for device in dict.fromkeys(("cpu", "cuda" if torch.cuda.is_available() else "cpu")):
        _print_servers(torch.device(device))
    missing = [hint for module, hint in _EXTRAS.items() if importlib.util.find_spec(module) is None]
    missing += ["CUDA kernels of whole blocks: mbv3fast build (docs/build.md)"] * bool(lacks_loading())
    click.echo("to install for more")
    for hint in missing or ["nothing: every optional package is there"]:
        click.echo(f"  {hint}")
    if failed:
        raise SystemExit(1)


def _print_servers(device: torch.device) -> None:
    """Who serves which dtypes there."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for dtype in SERVED_DTYPES:
        servers = network_server(device, dtype), *(op_server(op, device, dtype) for op in sorted(OPS))
        alike.setdefault(servers, []).append(str(dtype).removeprefix("torch."))
    for servers, dtypes in alike.items():
        click.echo(f"on {device.type}, in {', '.join(dtypes)}")
        for name, server in zip(("a network", *sorted(OPS)), servers, strict=True):
            _line(name, server)


def _print_choices(device: torch.device) -> None:
    click.echo(f"what auto may choose on {device}")
    failed = untried("layers", device) if tried("layers", device) else ""
    for plan, reason in {"layers": failed, "blocks": lacks_trusted_cuda(device, torch.float16)}.items():
        _line(f"plan {plan}", f"no: {reason}" if reason else "yes, where its self-check passes")
    state = lacks_network(device, torch.float16) or untried("network", device) or "it has passed its trial"
    _line("plan network", f'no, whatever its trial says, in this version; plan="network" asks for it: {state}')


def _try_plans(plans: Sequence[str], limit: float, commit: Path | None) -> bool:
    """Whether all `plans` that this machine has kernels for pass on its GPU, or in emulation."""
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    click.echo(f"trials on {device}" + ", emulated or interpreted, small" * (device.type == "cpu"))
    reasons = {}
    for plan in plans:
        try:
            number = len(cases(plan, device))
        except BackendError as error:
            _line(plan, f"left out: {error}")
            continue
        start = time.monotonic()
        reasons[plan] = try_in_process(plan, device, limit)
        _line(plan, reasons[plan] or f"passed in {number} cases, {time.monotonic() - start:.0f} s")
        if lost := keep_trial(plan, device, reasons[plan]):
            reasons[plan] = f"the verdict can't be kept: {lost}"
            _line(plan, reasons[plan])
        if commit and plan == "blocks" and not reasons[plan]:
            commit_trial(commit, device)
    if not reasons:
        raise click.ClickException("nothing to try: no plan's kernels run here")
    return not any(reasons.values())


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
    if lack:
        return f"no: {lack}"
    stale = " (of other sources than these: build it anew)" if library_sources() != sources_here() else ""
    return f"for {architectures() or 'the CPU, emulated'}: {library_path()}{stale}"


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
