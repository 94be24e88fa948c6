"""What each kernel must move and may take, as `mbv3fast plan --gpu h100` counts it, for the tables of kernels/*.md."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from docs.figures.layers import BATCHES, SIZE, Layer, layer
from mbv3fast.config import network
from mbv3fast.cost import Cost, gpu_target, plan_cost
from mbv3fast.cuda.work import work
from mbv3fast.factory import large
from mbv3fast.gpus import GPUS
from mbv3fast.launches import moved, planned_launches
from mbv3fast.ops import OPS, pack_taps
from mbv3fast.plan import INPUT, Plan, Shape, Step

GPU = GPUS["h100"]
_BLOCKS = tuple(layer(index) for index in range(1, len(network("large").blocks) + 1))


class Row(NamedTuple):
    """Of a table: where in the network, its sizes, and what is counted for few images and for many."""

    name: str
    sizes: str
    counted: tuple[str, ...]


def steps_table(backend: str, *ops: str) -> str:
    """A row for each step of these ops in the plan of the Large in float16."""
    plan, rows = _plan(backend), []
    for few, many in zip(*(plan_cost(plan, _images(n), GPU).steps for n in BATCHES), strict=True):
        if few.op in ops:
            name = few.name.split(".block")[0]
            rows.append(Row(name, f"{_sizes(few.inputs[0])} to {_sizes(few.output)}", _costs(few, many)))
    return _table(rows, "input and output", ("CTAs", "KB", "floor us", "estimate us"))


def calls_table(backend: str, op: str) -> str:
    """A row for each block of the Large, as a call of a single op has it."""
    rows = []
    for found in _BLOCKS:
        if op == "squeeze_excite" and not found.block.squeeze:
            continue
        plan, side = _call(backend, op, found), found.out if op == "squeeze_excite" else found.size
        shapes = ((images, found.block.expanded, side, side) for images in BATCHES)
        few, many = (plan_cost(plan, shape, GPU).steps[0] for shape in shapes)
        geometry = f"{found.block.kernel}x{found.block.kernel} / {found.block.stride}"
        last = f"{found.block.squeeze} hidden" if op == "squeeze_excite" else geometry
        rows.append(Row(found.name, f"{_sizes(few.inputs[0])}, {last}", _costs(few, many)))
    return _table(rows, "input", ("CTAs", "KB", "floor us", "estimate us"))


def launches_table(kernel: str) -> str:
    """A row for each launch of a CUDA kernel that has no step of its own."""
    plan, columns = _plan("cuda"), []
    for images in BATCHES:
        seen = planned_launches(plan, _images(images), gpu_target(plan, GPU))
        columns.append([one for one in seen if one.launch.kernel.__name__ == kernel])
    rows = []
    for few, many in zip(*columns, strict=True):
        s = few.launch.sizes
        sizes = f"{s['channels']}, {s['squeezed']} hidden" if "squeezed" in s else f"{s['inputs']} to {s['outputs']}"
        counted = []
        for one in (few, many):
            done, (moves,) = work(one.launch), moved([one.launch])
            seconds = GPU.memory_seconds(moves.read, moves.written)
            numbers = (moves.all / 1e3, done.issued / 1e3)
            counted += [f"{done.programs:,}", *(f"{number:,.0f}" for number in numbers), f"{seconds * 1e6:,.2f}"]
        rows.append(Row(few.step.name.split(".block")[0], sizes, tuple(counted)))
    return _table(rows, "channels", ("CTAs", "KB", "asked for KB", "floor us"))


PREDICTED: Mapping[str, Callable[[], str]] = {
    "stem_conv": lambda: steps_table("triton", "stem_conv"),
    "pointwise_conv": lambda: steps_table("triton", "pointwise_conv"),
    "depthwise_conv": lambda: calls_table("triton", "depthwise_conv"),
    "squeeze_excite": lambda: calls_table("triton", "squeeze_excite"),
    "depthwise_project": lambda: steps_table("triton", "depthwise_project"),
    "depthwise_excite_project": lambda: steps_table("triton", "depthwise_excite_project"),
    "linear": lambda: steps_table("triton", "pointwise_mean_linear", "linear"),
    "inverted_residual": lambda: steps_table("cuda", "depthwise_project", "inverted_residual"),
    "cuda-excite": lambda: launches_table("excite"),
    "cuda-pointwise_conv": lambda: launches_table("pointwise_conv"),
    "cuda-depthwise_conv": lambda: calls_table("cuda", "depthwise_conv"),
    "cuda-squeeze_excite": lambda: calls_table("cuda", "squeeze_excite"),
}


@functools.cache
def _plan(backend: str) -> Plan:
    with torch.device("meta"):  # counted, never computed
        return large().half().eval().plan(backend)


def _images(images: int) -> Shape:
    return images, 3, SIZE, SIZE


def _call(backend: str, op: str, found: Layer) -> Plan:
    """A plan of one step: the op at the sizes of a block."""
    block = found.block
    sizes = {"C": block.expanded, "k": block.kernel, "S": block.squeeze}
    options: dict[str, Any] = {"activation": "relu" if op == "squeeze_excite" else block.activation}
    if op == "depthwise_conv":
        options |= {"stride": block.stride, "padding": (block.kernel // 2,) * 4, "dilation": 1}
    tensors = {}
    for arg in OPS[op].spec.args[1:]:
        shape = [int(symbol) if symbol.isdigit() else sizes[symbol] for symbol in arg.shape.split()]
        dtype = torch.float32 if arg.kind == "either" else torch.float16
        tensor = torch.empty(shape, dtype=dtype, device="meta")
        tensors[arg.name] = pack_taps(tensor) if len(shape) == 4 else tensor
    return Plan(backend, torch.float16, (Step(op, (found.name,), {"x": INPUT}, tensors, options),), (found.name,))


def _costs(few: Cost, many: Cost) -> tuple[str, ...]:
    cells = []
    for cost in (few, many):
        seconds = (f"{cost.floor_seconds * 1e6:,.2f}", f"{(cost.estimate_seconds or 0) * 1e6:,.1f}")
        cells += [f"{cost.programs:,}", f"{cost.compulsory / 1e3:,.0f}", *seconds]
    return tuple(cells)


def _sizes(shape: Shape) -> str:
    """[N, C, H, W] of an image as HxWxC, [N, C] as C."""
    _, channels, *sides = shape
    return "x".join(map(str, [*sides, channels]))


def _table(rows: Sequence[Row], sizes: str, columns: Sequence[str]) -> str:
    """Markdown, rows that differ in nothing but their name as one."""
    merged: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for row in rows:
        merged.setdefault((row.sizes, row.counted), []).append(row.name)
    few, many = BATCHES
    head = ["step", sizes, *(f"{few}: {columns[0]}", *columns[1:]), *(f"{many}: {columns[0]}", *columns[1:])]
    lines = [head, ["---", "---", *["---:"] * (2 * len(columns))]]
    lines += [[_together(names), sizes, *counted] for (sizes, counted), names in merged.items()]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _together(names: Sequence[str]) -> str:
    """features.9 and features.10 as "features.9, 10"."""
    first, *others = names
    return ", ".join([first, *(name.rpartition(".")[2] for name in others)])
