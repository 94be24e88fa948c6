"""Mistakes in the sources of the network in one launch, as `mutants` has them of the other kernels."""

from __future__ import annotations

from functools import partial

from tests.cuda.mutants import COMPARED, FLIES, RACE, TOO_SOON, UNWRITTEN, Mutant


def _mistake(part: str, right: str, wrong: str, caught: str = COMPARED) -> Mutant:
    return Mutant("network", f"network_{part}.cuh", right, wrong, caught)


_rows, _channels, _block, _squeeze, _ends, _stream = (
    partial(_mistake, part) for part in ("rows", "channels", "block", "squeeze", "ends", "stream")
)
_CLUSTER, _BLOCK = "  sync_cluster();\n", "  __syncthreads();\n"
_ADD = "ank < place.size; ++rank) {\n      add("

FAST = {  # others are slow
    "rows below are not handed on": _rows(
        "rank * map.rows + map.rows + map.below", "rank * map.rows + map.rows", UNWRITTEN
    ),
    "a block's sums are left out": _channels(f"int rank = 0; r{_ADD}", f"int rank = 1; r{_ADD}"),
}
MUTANTS = {
    **FAST,
    "no barrier behind rows": _rows(f"end, place);\n{_CLUSTER}}}", "end, place);\n}", TOO_SOON),
    "no barrier behind parts of sums": _channels(f"{_CLUSTER}  add_up", f"{_BLOCK}  add_up", TOO_SOON),
    "no barrier behind sums over pixels": _squeeze(f"{_CLUSTER}  const int own", f"{_BLOCK}  const int own", TOO_SOON),
    "no barrier behind what blocks tell": _squeeze(f"  {_CLUSTER}    add", f"  {_BLOCK}    add", TOO_SOON),
    "no barrier behind the mean": _ends(
        f"    }});\n  }}\n{_CLUSTER}}}\n\n// This", "    });\n  }\n}\n\n// This", TOO_SOON
    ),
    "sums for means of rows": _squeeze("{ return sum * q.per_pixel; }", "{ return sum; }"),
    "sums for means of channels": _squeeze("store(means + c, sum * q.per_pixel)", "store(means + c, sum)"),
    "hidden units without activation": _squeeze("{ return activate(activation, sum); }", "{ return sum; }"),
    "no bias in squeeze-excite's layers": _squeeze("total.value += load<float>(bias + total.row);", ""),
    "no bias behind the network's expand": _block(
        "activate(activation, sum[0] + bias.x)", "activate(activation, sum[0])"
    ),
    "no bias behind windows": _block("sums[o] = bias;", "sums[o] = {0, 0};"),
    "no activation behind windows": _block("activate(activation, sums[o].y)", "sums[o].y"),
    "taps are mirrored across": _block("[o * Stride + kx].x", "[o * Stride + Kernel - 1 - kx].x"),
    "the tile's border is not cleared": _rows(
        "  clear_rows<T>(s, 0, (s.band - 1) * s.stride + s.kernel);\n", "", UNWRITTEN
    ),
    "no residual of rows": _rows("value.x += added.x,", "value.x += 0 * added.x,"),
    "no residual of channels": _channels("add(sum, float4{low.x, low.y", "add(sum, float4{0, low.y"),
    "no bias of rows": _rows("sum.x + offset.x", "sum.x"),
    "no bias of channels": _channels("float4 sum = load<float4>(bias + c);", "float4 sum = {0, 0, 0, 0};"),
    "the stem's windows are a row too low": _ends("begin * s.stride - s.top", "begin * s.stride"),
    "the stem has no bias": _ends("sum[1] + offset.y", "sum[1]"),
    "every image is the first": _ends("image * p.along[0] + y", "0 * p.along[0] + y"),
    "a chunk is not awaited": _stream("copies<kSlots - 1>();", "copies<kSlots>();", FLIES),
    "a slot is filled while others read it": _stream(f"release() {{\n  {_BLOCK}", "release() {\n", f"{RACE}|cp.async"),
    "every block has the first one's weights": _stream("std::int64_t{rank_} * chunk.apart", "0 * chunk.apart"),
}
