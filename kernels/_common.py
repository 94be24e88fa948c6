"""What the kernels share: activations, products, rounding, and the one place that launches."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import triton
import triton.language as tl

# Decided when the kernels are imported, as Triton itself decides it.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
_SIXTH = tl.constexpr(1 / 6)

Config = Mapping[str, int]  # a launch configuration: block sizes, num_warps, num_stages
Watcher = Callable[[str, int, tuple[Any, ...]], None]
_watchers: list[Watcher] = []


def launch(
    kernel: Any, grid: int, arguments: tuple[Any, ...], *, config: Config, pdl: bool = False, **constants: Any
) -> None:
    """Run `grid` programs of `kernel`; `pdl`: let it start while its predecessor drains (sm_90 and later)."""
    for watcher in _watchers:
        watcher(kernel.__name__, grid, arguments)
    options = {"launch_pdl": True} if pdl else {}
    kernel[(grid,)](*arguments, **constants, **config, PDL=pdl, **options)


def watch_launches(watcher: Watcher) -> Callable[[], None]:
    """Call `watcher` (kernel's name, grid, arguments) before every launch; the result ends that."""
    _watchers.append(watcher)
    return lambda: _watchers.remove(watcher)


def one_block(columns: int) -> int:
    """The block that holds all columns, at least the 16 that a tensor core takes."""
    return max(16, triton.next_power_of_2(columns))


@triton.jit
def begin(PDL: tl.constexpr):
    """Let the next kernel start; wait until the one before has written what this one reads."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()


@triton.jit
def clamp6(x):
    """min(max(x, 0), 6), NaN staying NaN."""
    return tl.clamp(x, 0.0, 6.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def hardsigmoid(x):
    return clamp6(x + 3.0) * _SIXTH


@triton.jit
def activate(x, ACTIVATION: tl.constexpr):
    """float32 in and out; ACTIVATION is "relu", "hardswish" or None."""
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "hardswish":
        x = x * clamp6(x + 3.0) * _SIXTH
    return x


@triton.jit
def dot(a, b, acc, TF32: tl.constexpr):
    """acc + a @ b in float32; float32 factors are exact unless TF32."""
    if INTERPRETED:  # which would multiply the bit patterns of bfloat16
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc)
    elif TF32:
        acc = tl.dot(a, b, acc, input_precision="tf32")
    else:
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc


@triton.jit
def narrow(x, DTYPE: tl.constexpr):
    """float32 rounded to DTYPE, ties to even."""
    if INTERPRETED and tl.bfloat16 == DTYPE:  # which would cut off
        bits = x.to(tl.int32, bitcast=True)
        bits += 0x7FFF + ((bits >> 16) & 1)
        x = (bits & -65536).to(tl.float32, bitcast=True)
    return x.to(DTYPE)
