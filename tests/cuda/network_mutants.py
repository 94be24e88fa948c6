"""Mistakes in the sources of the network in one launch, as `mutants` has them of the other kernels."""

from __future__ import annotations

from functools import partial

from tests.cuda.mutants import COMPARED, FLIES, RACE, TOO_SOON, UNWRITTEN, Mutant


def _mistake(part: str, right: str, wrong: str, caught: str = COMPARED) -> Mutant:
    return Mutant("network", f"network_{part}.cuh", right, wrong, caught)


_residual, _windows, _products, _squeeze, _ends, _stream = (
    partial(_mistake, part) for part in ("residual", "windows", "products", "squeeze", "ends", "stream")
)
_CLUSTER, _BLOCK = "  sync_cluster();\n", "  __syncthreads();\n"

FAST = {  # others are slow
    "rows below are not handed on": _residual("most(y - map_.below, 0)", "y", UNWRITTEN),
    "a member's sums are left out": _residual("int number = 0; number", "int number = 1; number"),
}
MUTANTS = {
    **FAST,
    "rows above are not handed on": _residual("by_rows_.of(y + map_.above)", "by_rows_.of(y)", UNWRITTEN),
    "no barrier behind a block of the network": _residual(f"  }}\n{_CLUSTER}}}", "  }\n}", TOO_SOON),
    "no barrier behind parts of sums": _residual(f"  {_CLUSTER}    add_up", f"  {_BLOCK}    add_up", TOO_SOON),
    "no barrier behind sums over pixels": _squeeze(
        f"{_CLUSTER}  const int first", f"{_BLOCK}  const int first", TOO_SOON
    ),
    "no barrier behind what blocks tell": _squeeze(f"  {_CLUSTER}    add", f"  {_BLOCK}    add", TOO_SOON),
    "no barrier behind scales": _squeeze("!q.alone && member.groups > 1 ?", "false ?", TOO_SOON),
    "no barrier behind the mean": _residual("return sync_cluster();", "return;", TOO_SOON),
    "no barrier between windows and their sums": _squeeze(f"{_BLOCK[:-1]}  // behind the windows\n", "", RACE),
    "sums for means": _squeeze("{ return sum * q.per_pixel; }", "{ return sum; }"),
    "hidden units without activation": _squeeze("{ return activate(q.activation, sum); }", "{ return sum; }"),
    "no bias in squeeze-excite's layers": _squeeze("total.value += load<float>(bias + total.row);", ""),
    "no bias of products": _products("sum[0] = bias.x,", "sum[0] = 0.0f,"),
    "no activation of products": _products("    activate_all(f.activation, r", "    activate_all(Activation::none, r"),
    "no scale of pixels": _squeeze("values[k] *= factors[k];", ""),
    "half of the pixels' sums are left out": _squeeze("mask < 32; mask", "mask < 16; mask"),
    "scales come while others read pixels": _squeeze(
        "sync_cluster() : __syncthreads();", "sync_cluster() : void();", TOO_SOON
    ),
    "no bias behind windows": _windows("sums[2 * o] = bias.x,", "sums[2 * o] = 0.0f,"),
    "no activation behind windows": _windows("    activate_all(s.activation, sums);\n", ""),
    "taps are mirrored across": _windows("[o * Stride + kx].x", "[o * Stride + Kernel - 1 - kx].x"),
    "the tile's border is not cleared": _residual(
        "  clear_border<T>(s, (s.band - 1) * s.stride + s.kernel);\n", "", UNWRITTEN
    ),
    "rows above the image are not cleared": _residual("clear_rows<T>(s, 0, band.top - band.first), ", "", UNWRITTEN),
    "rows below the image are not cleared": _residual("band.bottom - band.first, band.count);", "0, 0);", UNWRITTEN),
    "no barrier between bands": _residual("      if (s.bound) __syncthreads();\n", "", RACE),
    "no barrier before rows are handed on": _residual(f"  {_BLOCK}    publish", "    publish", TOO_SOON),
    "no residual of a group of one": _residual("sum.x += added.x,", "sum.x += 0 * added.x,"),
    "no residual of a larger group": _residual("add(sum, float4{low.x, low.y", "add(sum, float4{0, low.y"),
    "no bias of sums of a group": _residual("float4 sum = load<float4>(bias + c);", "float4 sum = {0, 0, 0, 0};"),
    "the stem's windows are a row too low": _ends("begin * s.stride - s.top", "begin * s.stride"),
    "the stem has no bias": _ends("sum[1] + offset.y", "sum[1]"),
    "no barrier behind the stem": _ends(f"{_CLUSTER[:-1]}  // in", f"{_BLOCK[:-1]}  // in", "before a cluster barrier"),
    "every image is the first": _ends("image * p.along[0] + y", "0 * p.along[0] + y"),
    "a chunk is not awaited": _stream("copies<kSlots - 2>();", "copies<kSlots - 1>();", FLIES),
    "a slot is filled while others read it": _stream(
        f"{_BLOCK}    send();", "  send();\n  __syncthreads();", f"{RACE}|cp.async"
    ),
    "every block has the first one's weights": _stream("copy = rank_ & (chunk_.copies - 1)", "copy = 0"),
}
