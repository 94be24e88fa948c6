"""`mbv3fast plan`: the steps of a forward, counted, and what they must cost on a GPU."""

from __future__ import annotations

import json
from typing import Any

import click
import torch

from mbv3fast.alternatives import alternatives
from mbv3fast.backend import BACKENDS, OF_CUDA, PLANS, BackendError
from mbv3fast.cli.options import DTYPES
from mbv3fast.cost import plan_cost
from mbv3fast.factory import large, small
from mbv3fast.gpus import GPUS, Gpu
from mbv3fast.plan import Plan, Shape

Counted = dict[str, Any]
_OF_PLANS = dict(zip(PLANS, ("triton", "cuda", "network"), strict=True))
_GPU_TOTALS = ("bytes_read", "bytes_written", "partial_bytes", "launches", "compulsory", "issued", "serial")
_GPU_SECONDS = ("floor_seconds", "cold_floor_seconds", "streamed_seconds", "estimate_seconds")


@click.command(short_help="Count the steps of a forward.")
@click.argument("model", type=click.Choice(["large", "small"]))
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--size", type=click.IntRange(32), default=224, show_default=True, help="Height and width.")
@click.option("--dtype", type=click.Choice(sorted(DTYPES)), help="By default float32; with --gpu or by CUDA float16.")
@click.option("--backend", type=click.Choice(BACKENDS), help="By default auto; with --gpu triton.")
@click.option("--plan", "named", type=click.Choice(PLANS), help="By its plan, instead of --backend.")
@click.option("--gpu", type=click.Choice(list(GPUS)), help="Count for this GPU: floors, an estimate, and the others'.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def plan(
    model: str,
    batch: int,
    size: int,
    dtype: str | None,
    backend: str | None,
    named: str | None,
    gpu: str | None,
    as_json: bool,
) -> None:
    """Print the fused steps of a network: shapes, activation bytes, weight bytes, multiply-adds, launches.

    With --gpu also, of our kernels, the fewest programs of a launch (CTAs), the trips to memory that one makes in a
    row, the pixels that programs read over those that there are (halo), the bytes that all ask for, and an estimate,
    which is no bound; and for any backend the floor, the least time for these steps, with what bounds it, and the same
    with nothing in the cache (cold). Nothing is measured. Of --plan network, which is one launch, `mbv3fast stages`
    says more.

    \b
    mbv3fast plan large
    mbv3fast plan small --batch 8 --size 160 --json
    mbv3fast plan large --gpu h100
    mbv3fast plan large --plan network
    """
    if backend and named:
        raise click.UsageError("give --backend or --plan, not both")
    if gpu and named == "network":
        raise click.UsageError("--gpu counts launches by step, and --plan network is one: see mbv3fast stages")
    shape = (batch, 3, size, size)
    backend = _OF_PLANS[named] if named else backend
    dtype = dtype or ("float16" if gpu or backend in OF_CUDA else "float32")
    backend = backend or ("triton" if gpu else "auto")
    steps = _plan(model, dtype, backend)
    counted: Counted = {"model": model, "dtype": dtype, **steps.to_dict(shape)}
    if gpu is not None:
        _add_costs(counted, steps, shape, GPUS[gpu])
        others = alternatives(steps if steps.backend == "torch" else _plan(model, dtype, "torch"), shape)
        counted["alternatives"] = [
            {"name": other.name, **other.total._asdict(), "parts": {n: p._asdict() for n, p in other.parts.items()}}
            for other in others
        ]
    if as_json:
        click.echo(json.dumps(counted, indent=2))
    else:
        click.echo(_table(counted) + ("" if gpu is None else f"\n\n{_comparison(counted, GPUS[gpu])}"))


def _plan(model: str, dtype: str, backend: str) -> Plan:
    try:
        with torch.device("meta"):  # counted, never computed
            named = backend if backend in OF_CUDA else None  # plans that are counted without their library
            network = (large if model == "large" else small)(backend="auto" if named else backend)
            return network.to(DTYPES[dtype]).eval().plan(named)
    except (BackendError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _add_costs(counted: Counted, plan: Plan, shape: Shape, gpu: Gpu) -> None:
    """The steps' costs on `gpu`, in place of those counted for the H100 where its launches differ."""
    cost = plan_cost(plan, shape, gpu)
    counted["gpu"] = gpu.name
    for step, more in zip(counted["steps"], cost.to_dict(), strict=True):
        step |= more
    counted["totals"] |= {name: cost.total(name) for name in (*_GPU_TOTALS, *_GPU_SECONDS)}


def _table(plan: Counted) -> str:
    row = "{:<22} {:<24} {:>20} {:>20} {:>9} {:>9} {:>9} {:>9} {:>4}"
    title = f"{plan['model']}, input {plan['input']}, {plan['dtype']}, backend {plan['backend']}"
    names: tuple[str, ...] = ("step", "op", "input", "output", "read KB", "write KB", "weight KB", "MMAC", "runs")
    numbers = _numbers
    if "gpu" in plan:
        row += " {:>6} {:>6} {:>6} {:>9} {:>9} {:<12} {:>9} {:<12} {:>11}"
        title += f", {plan['gpu']}: counted, not measured"
        names += ("CTAs", "serial", "halo", "issued KB", "floor us", "bound", "cold us", "bound", "estimate us")
        numbers = _numbers_on_gpu
    lines = [title, row.format(*names)]
    for step in plan["steps"]:
        shapes = ("x".join(map(str, shape)) for shape in (step["shapes"]["inputs"][0], step["shapes"]["output"]))
        lines.append(row.format(step["name"], step["op"], *shapes, *numbers(step)))
    lines.append(row.format("total", "", "", "", *numbers(plan["totals"])))
    return "\n".join(line.rstrip() for line in lines)


def _numbers(counts: Counted) -> tuple[str, ...]:
    kilobytes = (f"{counts[name] / 1e3:,.0f}" for name in ("bytes_read", "bytes_written", "weight_bytes"))
    return (*kilobytes, f"{counts['macs'] / 1e6:,.2f}", str(counts["launches"]))


def _numbers_on_gpu(counts: Counted) -> tuple[str, ...]:
    """A total has no programs, halo and bound; PyTorch's own kernels have nothing that only launches tell."""

    def number(name: str, form: str, scale: float = 1) -> str:
        value = counts.get(name)
        return "" if value is None else format(value * scale, form)

    return (
        *_numbers(counts),
        number("programs", ",d"),
        number("serial", ",d"),
        number("halo", ".2f"),
        number("issued", ",.0f", 1e-3),
        number("floor_seconds", ",.2f", 1e6),
        counts.get("bound", ""),
        number("cold_floor_seconds", ",.2f", 1e6),
        counts.get("cold_bound", ""),
        number("estimate_seconds", ",.1f", 1e6),
    )


def _comparison(plan: Counted, gpu: Gpu) -> str:
    """What eager PyTorch and a compiler would launch and move, beside this plan."""
    totals, images = plan["totals"], plan["input"][0]
    rows = [(other["name"], other["launches"], other["moved"], other["vectors"]) for other in plan["alternatives"]]
    moved = totals["bytes_read"] + totals["bytes_written"]
    rows.append((f"this plan ({plan['backend']})", totals["launches"], moved, totals["partial_bytes"]))
    row = "{:<22} {:>8} {:>10} {:>16} {:>30}"
    lines = [row.format("a forward", "launches", "MB", "MB of vectors", "images/s at memory's bandwidth")]
    for name, launches, maps, vectors in rows:
        speed = images * gpu.memory_bandwidth / (maps + vectors)
        lines.append(row.format(name, f"{launches:,}", f"{maps / 1e6:,.1f}", f"{vectors / 1e6:,.2f}", f"{speed:,.0f}"))
    return "\n".join(lines)
