"""What the kernels share: activations, products, rounding, and the one place that launches."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from mbv3fast.kernels.configs import Config
from mbv3fast.launching import Launch, announce, traced, watched

# Decided when the kernels are imported, as Triton itself decides it.
INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")
_SIXTH = tl.constexpr(1 / 6)
_MOST_PROGRAMS = 2**31 - 1


def launch(
    kernel: Any,
    grid: int,
    reads: tuple[torch.Tensor | None, ...],
    writes: tuple[torch.Tensor | None, ...],
    sizes: tuple[int, ...],
    *,
    config: Config,
    pdl: bool = False,
    **constants: Any,
) -> None:
    """Run `grid` programs of `kernel(*reads, *writes, *sizes)`; tensors without data (meta) are only watched.

    pdl: let it start while its predecessor drains (sm_90 and later).
    """
    if watched():
        names = kernel.arg_names
        announce(
            Launch(
                kernel,
                grid,
                _given(names, reads),
                _given(names[len(reads) :], writes),
                dict(zip(names[len(reads) + len(writes) :], sizes, strict=False)),
                {**constants, **config, "PDL": pdl},
            )
        )
    if traced():  # without programmatic launches, which Inductor doesn't know
        torch.library.wrap_triton(kernel)[(grid,)](*reads, *writes, *sizes, **constants, **config, PDL=False)
        return
    if grid == 0 or any(tensor.is_meta for tensor in writes if tensor is not None):
        return
    if grid > _MOST_PROGRAMS:
        raise ValueError(f"{kernel.__name__}: {grid} programs, a launch has at most {_MOST_PROGRAMS}; split the batch")
    options = {"launch_pdl": True} if pdl else {}
    kernel[(grid,)](*reads, *writes, *sizes, **constants, **config, PDL=pdl, **options)


def _given(names: Sequence[str], tensors: tuple[torch.Tensor | None, ...]) -> dict[str, torch.Tensor]:
    """Tensors that aren't None by the first of `names`."""
    return {name: tensor for name, tensor in zip(names, tensors, strict=False) if tensor is not None}


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
    """float32 in and out; ACTIVATION is "relu", "relu6", "hardswish", "silu" or None."""
    if ACTIVATION == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif ACTIVATION == "relu6":
        x = clamp6(x)
    elif ACTIVATION == "hardswish":
        x = x * clamp6(x + 3.0) * _SIXTH
    elif ACTIVATION == "silu":
        x = x * tl.sigmoid(x)  # 0 where exp(-x) overflows
    else:
        tl.static_assert(ACTIVATION is None, "ACTIVATION")
    return x


@triton.jit
def gated(x, GATE: tl.constexpr):
    """The scale of squeeze-excite, float32 in and out; GATE is "hardsigmoid" or "sigmoid"."""
    tl.static_assert(GATE == "sigmoid" or GATE == "hardsigmoid", "GATE")
    return tl.sigmoid(x) if GATE == "sigmoid" else hardsigmoid(x)


@triton.jit
def add_up(x, axis: tl.constexpr):
    """The sum of float32 along an axis; interpreted, rounded once, since numpy's order is no GPU's."""
    return tl.sum(x.to(tl.float64), axis=axis).to(tl.float32) if INTERPRETED else tl.sum(x, axis=axis)


@triton.jit
def dot(a, b, acc, TF32: tl.constexpr):
    """acc + a @ b in float32; float32 factors are exact unless TF32."""
    if INTERPRETED:  # which would multiply the bit patterns of bfloat16; sums as `add_up`
        acc += tl.dot(a.to(tl.float64), b.to(tl.float64), out_dtype=tl.float64).to(tl.float32)
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
