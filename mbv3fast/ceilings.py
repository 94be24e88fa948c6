"""What a device can do: as its vendor says, or where that isn't known, as a copy and a matrix product find."""

from __future__ import annotations

import functools
import platform
from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from mbv3fast.gpus import Gpu, find_gpu
from mbv3fast.timing import device_seconds, latency_seconds, replayed, waiter

_LARGE = 256 * 2**20  # bytes: no cache holds them
_ROUNDS = 5
_COPIES = 20  # in a CUDA graph
_PACKED = 4  # times as fast as float32 are halves on CUDA cores, at most: the A100's
_ORDER = {"cuda": 8192, "cpu": 1024}  # of the matrices
_L3 = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")


def chip_of(device: torch.device) -> tuple[Gpu, bool]:
    """The figures of a device, and whether they were measured here and now, which takes a second.

    The table's hold only for a device with as many multiprocessors as its namesake there: all Jetsons are "Orin".
    Measured ones are rates that something reaches, and so may be beaten. A CPU's multiprocessors are its threads, its
    L2 cache is the last that it has.
    """
    if device.type == "cuda":
        chip = torch.cuda.get_device_properties(device)
        known = find_gpu(chip.name)
        if known is not None and known.sms == chip.multi_processor_count:
            return known, False
    return _measured(device), True


@functools.cache
def _measured(device: torch.device) -> Gpu:
    cache = _cache_bytes(device)
    products = {dtype: _product_flops(device, dtype) for dtype in _products(device)}
    exact = products.pop("float32")
    rates = MappingProxyType({dtype: products.get(dtype, exact) for dtype in ("float16", "bfloat16", "tf32")})
    memory = _bandwidth(device, _LARGE)
    cached = _bandwidth(device, cache // 4) if cache else memory
    name, capability, sms, packed = _cpu_name(), (0, 0), torch.get_num_threads(), 1
    if device.type == "cuda":
        chip = torch.cuda.get_device_properties(device)
        name, capability, sms, packed = chip.name, (chip.major, chip.minor), chip.multi_processor_count, _PACKED
    return Gpu(name, capability, sms, memory, cache, max(cached, memory), rates, exact, packed * exact)


def _products(device: torch.device) -> tuple[str, ...]:
    """The kinds of products that have a unit of their own: a CPU's plans compute in float32 alone."""
    return ("float32", "tf32", "float16", "bfloat16") if device.type == "cuda" else ("float32",)


def _bandwidth(device: torch.device, size: int) -> float:
    """Bytes a second that a copy of `size` bytes reads and writes."""
    source = torch.ones(max(size, 1 << 16) // 4, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _fastest(lambda: target.copy_(source), device, calls=_COPIES)


def _product_flops(device: torch.device, dtype: str) -> float:
    """Operations a second of a square product; "tf32" of float32 factors."""
    order = _ORDER[device.type]
    a = torch.randn(order, order, device=device, dtype=torch.float32 if dtype == "tf32" else getattr(torch, dtype))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if dtype == "tf32" else "highest")
    try:
        return 2 * order**3 / _fastest(lambda: a @ a, device)
    finally:
        torch.set_float32_matmul_precision(before)


def _fastest(run: Callable[[], Any], device: torch.device, calls: int = 1) -> float:
    """Seconds of a call; on a GPU of one among `calls` in a CUDA graph, as a single short one waits for its launch."""
    if device.type == "cpu":
        return min(latency_seconds(run, waiter(device), _ROUNDS))
    with torch.cuda.device(device):
        return min(device_seconds(replayed(run, calls), _ROUNDS, calls=calls))


def _cache_bytes(device: torch.device) -> int:
    """Of the last cache, 0 where nothing says."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).L2_cache_size
    try:
        return int(_L3.read_text().strip().removesuffix("K")) * 1024
    except (OSError, ValueError):
        return 0


def _cpu_name() -> str:
    """As the kernel says, else the architecture's."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
