"""Mistakes in the CUDA sources, and what must tell of each: `test_mutations` makes them."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple


class Mutant(NamedTuple):
    """`wrong` in place of `right` in a file, compiled for an instance (`reduced.CUTS`).

    caught: of an error's message, that of a comparison or of the emulation.
    """

    instance: str
    file: str
    right: str
    wrong: str
    caught: str


_STAGES, _BLOCK = "inverted_residual.cuh", "inverted_residual_block.cuh"
_projected, _not_expanded, _sums = (partial(Mutant, name, _STAGES) for name in ("projected", "not expanded", "sums"))
_depthwise, _pointwise = (partial(Mutant, name, f"{name}_conv.cu") for name in ("depthwise", "pointwise"))
COMPARED = r"Error\(.*\) exceeds Error\("
RACE, UNWRITTEN, FLIES = "race: ", "read of what nothing wrote", "read of what a cp.async still brings"
TOO_SOON = rf"{RACE}|{UNWRITTEN}|has ended|ends while"
_WAIT, _SYNC = "    wait_for_copies<0>();\n", "    __syncthreads();\n"


def _squeeze(right: str, wrong: str, caught: str = COMPARED) -> Mutant:
    return Mutant("squeeze-excite", "squeeze_excite.cu", right, wrong, caught)


FAST = {  # others are slow
    "top and left are swapped": Mutant(
        "projected",
        _BLOCK,
        "first_y = row * C::kStride - p.top, first_x = column * C::kStride - p.left",
        "first_y = row * C::kStride - p.left, first_x = column * C::kStride - p.top",
        rf"{COMPARED}|out of bounds",
    ),
    "the last 8 inputs are left out": Mutant("projected", "tensor.cuh", "if (k == depth) return;", "return;", COMPARED),
    "sums are another tile's": _sums(
        "(b.image * b.p.tiles_x * b.p.tiles_y + b.tile)",
        "((b.image + 1) * b.p.tiles_x * b.p.tiles_y - 1 - b.tile)",
        COMPARED,
    ),
    "no barrier between expand and depthwise": _projected(
        _SYNC + "    if (step + 1", "    if (step + 1", f"{RACE}|{UNWRITTEN}"
    ),
}
MUTANTS = {
    **FAST,
    "no bias after expand": _projected("sum[0] + offset.x", "sum[0]", COMPARED),
    "no bias after depthwise": _projected("kStripWidth] = bias;", "kStripWidth] = {0, 0};", COMPARED),
    "no bias after project": _projected("sum[2 * half] + bias.x", "sum[2 * half]", COMPARED),
    "no activation after depthwise": _projected(
        "second = activate<C::kActivation>(sum.y);", "second = sum.y;", COMPARED
    ),
    "no residual": _projected("values[c] += others[c]", "values[c] += 0 * others[c]", COMPARED),
    "a halo is a row short": Mutant(
        "projected",
        _BLOCK,
        "kHeight = (TileHeight - 1) * Stride + Kernel,",
        "kHeight = (TileHeight - 1) * Stride + Kernel - 1,",
        f"{COMPARED}|{UNWRITTEN}|{RACE}",
    ),
    "the border is not cleared": _projected("  clear(b);\n", "", UNWRITTEN),
    "no barrier before project": _projected(_WAIT + _SYNC + "    if constexpr", _WAIT + "    if constexpr", RACE),
    "weights are not awaited": _projected("depthwise(b, step);\n" + _WAIT, "depthwise(b, step);\n", FLIES),
    "the launch before is not awaited": _projected(
        "  wait_for_predecessor();\n", "", "that the launch before may still use"
    ),
    "pixels outside are summed": _sums(
        "if (b.row + r < b.p.out_height && b.column + c < b.p.out_width) total.x",
        "total.x",
        COMPARED,
    ),
    "the input is added from a pixel beside": Mutant(
        "not expanded",
        _BLOCK,
        "return expanded + (y * C::kWidth + x)",
        "return expanded + (y * C::kWidth)",
        COMPARED,
    ),
    "taps are mirrored": _depthwise("taps[kx][c], sums[o][c])", "taps[K - 1 - kx][c], sums[o][c])", COMPARED),
    "no barrier before sums": _depthwise("  __syncthreads();\n", "", f"{RACE}|{UNWRITTEN}"),
    "pixels right of the image are written": _depthwise(
        "if (column + o >= p.out_width) continue;", "", rf"{COMPARED}|out of bounds"
    ),
    "the first image's scale": _pointwise("b.p.scale + b.first_row / b.p.pixels * b.p.inputs", "b.p.scale", COMPARED),
    "too few copies are awaited": _pointwise(
        "wait_for_copies<C::kStages - 2>", "wait_for_copies<C::kStages - 1>", FLIES
    ),
    "a warp's sums are left out": _pointwise("k < C::kWarpsK", "k < C::kWarpsK - 1", COMPARED),
    "no bias in squeeze-excite": Mutant(
        "excite", "excite.cuh", "load<float>(slice.offsets + (total.row - slice.begin))", "0.0f", "assert tensor"
    ),
    **{
        f"the launch before is not awaited by {kernel}": Mutant(
            instance, file, f"  wait_for_predecessor();\n{behind}", behind, "that the launch before may still use"
        )
        for kernel, instance, file, behind in (
            ("depthwise_conv", "depthwise", "depthwise_conv.cu", ""),
            ("pointwise_conv", "pointwise", "pointwise_conv.cu", ""),
            ("excite", "excite", "excite.cu", "  wait_for_copies<1>();\n"),
            ("squeeze_excite", "squeeze-excite", "squeeze_excite.cu", "  for (int i = thread_index(); i < eights;"),
            ("its product", "squeeze-excite", "squeeze_excite.cu", "  multiply_by("),
        )
    },
    "a sum for a mean": _squeeze(
        "gathered + four, cluster, p.rows), p.per_pixel)", "gathered + four, cluster, p.rows), 1.0f)"
    ),
    "a pixel is summed twice": _squeeze(
        "load<Eight<T>>(x + (pixel * channels", "load<Eight<T>>(x + ((pixel & ~1) * channels"
    ),
    "sums are taken before all have come": _squeeze(
        "  sync_cluster();\n  const int fours", "  __syncthreads();\n  const int fours", TOO_SOON
    ),
    "hidden units are taken before all have come": _squeeze(
        "  sync_cluster();\n  excite<4", "  __syncthreads();\n  excite<4", TOO_SOON
    ),
    "scales are taken before all have come": _squeeze(
        "  sync_cluster();\n  multiply_by", "  __syncthreads();\n  multiply_by", TOO_SOON
    ),
    "no barrier of the cluster": Mutant(
        "excite",
        "excite.cu",
        "  sync_cluster();\n",
        "  __syncthreads();\n",
        TOO_SOON,
    ),
}
