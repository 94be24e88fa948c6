"""What compilers make of each kernel, for the tables of kernels/*.md, as two other pages have it of the compilers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

DOCS = Path(__file__).parent
CHIPS = ("sm_80", "sm_86", "sm_87", "sm_89", "sm_90", "sm_100", "sm_120")
COMPILED: Mapping[str, Sequence[str]] = {
    "stem_conv": ("_stem_conv_kernel",),
    "pointwise_conv": ("_pointwise_conv_kernel",),
    "depthwise_conv": ("_depthwise_conv_kernel",),
    "squeeze_excite": ("_excite_kernel",),
    "depthwise_project": ("_depthwise_project_kernel",),
    "depthwise_excite_project": (
        "_depthwise_conv_kernel",
        "_excite_project_kernel",
        "_excite_kernel",
        "_excite_images_kernel",
    ),
    "linear": ("_linear_kernel",),
    "inverted_residual": ("inverted_residual_kernel",),
    "cuda-excite": ("excite_kernel", "squeeze_slices_kernel", "excite_slices_kernel"),
    "cuda-pointwise_conv": ("pointwise_conv_kernel",),
    "cuda-depthwise_conv": ("depthwise_conv_kernel",),
    "cuda-squeeze_excite": ("squeeze_excite_kernel", "pool_kernel", "apply_kernel"),
}


def compiled(section: str) -> str:
    """The table of a page, whose kernels are Triton's where their names begin with an underscore."""
    kernels = COMPILED[section]
    return _by_triton(kernels) if kernels[0].startswith("_") else _by_ptxas(kernels)


def _by_triton(kernels: Sequence[str]) -> str:
    text = (DOCS / "kernels-table.md").read_text(encoding="utf-8")
    few, many = (_rows(part) for part in text.split("\n## Large, batch ")[1:])
    head = ["kernel, sm_90", "1 image: registers", "shared KB", "128 images: registers", "shared KB"]
    lines = [head, ["---", *["---:"] * 4]]
    for kernel in kernels:
        cells = [f"`{kernel}`"]
        for part in (few, many):
            found = [row for row in part if row[1] == kernel]
            cells += [_range([row[column] for row in found]) for column in (4, 6)]
        lines.append(cells)
    return _markdown(lines)


def _by_ptxas(kernels: Sequence[str]) -> str:
    text = (DOCS / "cuda-kernels.md").read_text(encoding="utf-8")
    rows = [row for row in _rows(text.split("\n## What ptxas says")[1]) if len(row) == 1 + len(CHIPS)]
    lines = [["kernel", "compiled for", *CHIPS], ["---", *["---:"] * (1 + len(CHIPS))]]
    for kernel in kernels:
        found = [row for row in rows if row[0].startswith(f"`{kernel}<")]
        cases = f"{len(found)} case{'s' * (len(found) > 1)}"
        columns = ([row[column] for row in found] for column in range(1, 1 + len(CHIPS)))
        lines.append([f"`{kernel}`", cases, *map(_range, columns)])
    return _markdown(lines)


def _rows(text: str) -> list[list[str]]:
    """The cells of each line of a table."""
    lines = (line for line in text.splitlines() if line.startswith("| "))
    return [[cell.strip() for cell in line.strip("| ").split("|")] for line in lines]


def _range(cells: Sequence[str]) -> str:
    """The least and the most of some numbers; none where there is no such launch."""
    numbers = sorted(set(cells), key=float)
    return f"{numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else numbers[0] if numbers else "-"


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
