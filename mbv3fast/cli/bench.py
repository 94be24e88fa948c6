"""`mbv3fast bench`: how long a forward takes here, step by step, beside what it must."""

from __future__ import annotations

import json
import statistics
from typing import Any

import click
import torch
from tqdm import tqdm

from mbv3fast.backend import BACKENDS, BackendError
from mbv3fast.ceilings import chip_of
from mbv3fast.cli.options import DTYPES, parse_device
from mbv3fast.cost import plan_cost
from mbv3fast.engine import Engine
from mbv3fast.factory import large, small
from mbv3fast.fast import FusedMobileNetV3
from mbv3fast.gpus import Gpu
from mbv3fast.plan import Plan, Shape
from mbv3fast.preprocess import Preprocess
from mbv3fast.steps import repeatable, step_arguments, step_inputs, step_run
from mbv3fast.timing import Run, graph_seconds, latency_seconds, waiter
from mbv3fast.torch_state import tf32_allowed

_ROW = "{:<22} {:<24} {:>18} {:>4} {:>11} {:>11} {:>6}  {:<12} {:>9} {:>9}"
_COLUMNS = ("step", "op", "input", "runs", "us", "floor us", "share", "bound", "GB/s", "GFLOP/s")


@click.command(short_help="Time a forward here, step by step, beside its floor.")
@click.argument("model", type=click.Choice(["large", "small"]))
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--size", type=click.IntRange(32), default=224, show_default=True, help="Height and width.")
@click.option("--dtype", type=click.Choice(sorted(DTYPES)), help="By default float16 on a GPU, float32 on a CPU.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, …; auto takes a GPU.")
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)
@click.option("--rounds", type=click.IntRange(1), default=30, show_default=True, help="Of which medians are taken.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def bench(
    model: str, batch: int, size: int, dtype: str | None, device: str, backend: str, rounds: int, as_json: bool
) -> None:
    """Time every step of a network by itself, and the whole, and print the floor beside each.

    The floor is the least time that the device's memory and arithmetic allow (docs/cost-model.md): by the vendor's
    figures for GPUs that are known, which a card that boosts may exceed a little, else by a copy and a matrix product
    that are timed first, and may be beaten. On a GPU steps run in a CUDA graph with a warm L2 cache. The whole is timed
    from the call to its result, whoever serves it. Steps are of as many images as the engine runs at once.

    Of a step: its launches (runs), the floor over its time (share), what sets its floor (bound), and by its time the
    bytes that it must move (GB/s) and the operations that it must do (GFLOP/s). A call is not the sum of its steps:
    it finds other things in the cache, and has what comes between them.

    \b
    mbv3fast bench large
    mbv3fast bench small --batch 128 --dtype float16 --json
    """
    place = parse_device(device)
    kind = DTYPES[dtype or ("float16" if place.type == "cuda" else "float32")]
    try:
        network = (large if model == "large" else small)(backend=backend).to(place, kind).eval()
        x = torch.randn(batch, 3, size, size, device=place, dtype=kind)
        with torch.inference_mode():
            found = {**_whole(network, x, rounds), **_steps(network.plan(), x, rounds)}
    except (BackendError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    except RuntimeError as error:  # PyTorch's, of a batch too large for the memory
        raise click.ClickException(str(error).splitlines()[0]) from error
    found |= {"model": model, "input": list(x.shape), "dtype": str(kind).removeprefix("torch.")}
    click.echo(json.dumps(found, indent=2) if as_json else _table(found))


def _whole(network: FusedMobileNetV3, x: torch.Tensor, rounds: int) -> dict[str, Any]:
    """A call's seconds, median; who serves it, and whether that is an engine with the plan's steps."""
    decision = network.explain(x)
    seconds = latency_seconds(lambda: network(x), waiter(x.device), rounds)
    return {
        "served_by": decision.reason,
        "served_by_engine": decision.fused,
        "call_seconds": statistics.median(seconds),
    }


def _steps(plan: Plan, x: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Each step's seconds, median, and its cost on the device of `x`, for the images that the engine runs at once."""
    chip, measured = chip_of(x.device)
    images, *others = x.shape
    at_once = Engine(plan, Preprocess()).images_at_once(tuple(x.shape))

    def floor(part: int) -> float:
        return plan_cost(plan, (part, *others), chip, tf32=tf32_allowed()).total("floor_seconds") if part else 0.0

    return {
        "backend": plan.backend,
        "chip": _described(chip),
        "chip_is_measured": measured,
        "images_at_once": at_once,
        "call_floor_seconds": images // at_once * floor(at_once) + floor(images % at_once),
        "steps": _timed(plan, (at_once, *others), x.device, chip, rounds),
    }


def _timed(plan: Plan, shape: Shape, device: torch.device, chip: Gpu, rounds: int) -> list[dict[str, Any]]:
    costs = plan_cost(plan, shape, chip, tf32=tf32_allowed()).steps
    steps = []
    bar = tqdm(step_inputs(plan, shape), "timing", unit="step", leave=False, disable=None)
    for (step, inputs), cost in zip(bar, costs, strict=True):
        given = repeatable(plan.backend, step, step_arguments(step, inputs, plan.dtype, device))
        seconds = statistics.median(_seconds(step_run(plan, step, given, device), device, rounds))
        steps.append(
            {
                "step": step.name,
                "op": step.op,
                "input": list(inputs["x"]),
                "launches": cost.launches,
                "seconds": seconds,
                "floor_seconds": cost.floor_seconds,
                "bound": cost.bound if device.type == "cuda" or cost.bound == "memory" else "arithmetic",
                "bytes_per_second": cost.compulsory / seconds,
                "flops": 2 * cost.macs / seconds,
            }
        )
    return steps


def _seconds(run: Run, device: torch.device, rounds: int) -> list[float]:
    if device.type == "cpu":
        return latency_seconds(run, waiter(device), rounds)
    with torch.cuda.device(device):
        return graph_seconds(run, rounds)


def _described(chip: Gpu) -> dict[str, Any]:
    return {
        "name": chip.name,
        "memory_bytes_per_second": chip.memory_bandwidth,
        "cache_bytes": chip.l2_bytes,
        "cache_bytes_per_second": chip.l2_bandwidth,
        "flops": {**chip.tensor_flops, "float32": chip.fp32_flops},
    }


def _table(found: dict[str, Any]) -> str:
    chip, steps, images, at_once = found["chip"], found["steps"], found["input"][0], found["images_at_once"]
    source = "measured here" if found["chip_is_measured"] else "the vendor's figures"
    memory, cache = (chip[f"{name}_bytes_per_second"] / 1e9 for name in ("memory", "cache"))
    flops = chip["flops"].get(found["dtype"], chip["flops"]["float32"])  # a CPU computes in float32 alone
    rates = f"memory {memory:,.0f} GB/s, cache {cache:,.0f} GB/s, arithmetic {flops / 1e12:,.2f} TFLOP/s"
    lines = [f"{found['model']}, input {found['input']}, {found['dtype']}, on {chip['name']}", f"{source}: {rates}"]
    if at_once < images:
        lines.append(f"steps of {at_once:,} images: the engine runs {images:,} in {-(-images // at_once):,} parts")
    lines += [_ROW.format(*_COLUMNS), *(_ROW.format(*_cells(step)).rstrip() for step in steps)]
    taken, floor = (sum(step[name] for step in steps) for name in ("seconds", "floor_seconds"))
    times = f"{taken * 1e6:,.1f}", f"{floor * 1e6:,.2f}", f"{floor / taken:.0%}"
    total = ("all steps", "", "", sum(step["launches"] for step in steps), *times, "", "", "")
    call = found["call_seconds"]
    said = f"a call      {call * 1e6:,.1f} us, {images / call:,.0f} images/s"
    if found["served_by_engine"]:  # else the floor is of other launches
        said += f"; its floor is {found['call_floor_seconds'] / call:.0%} of that"
    served = f"served by   {found['served_by']}"
    if not found["served_by_engine"]:
        served += f"; the steps above are of the plan for {found['backend']}, which doesn't serve it"
    return "\n".join([*lines, _ROW.format(*total).rstrip(), "", said, served])


def _cells(step: dict[str, Any]) -> tuple[str, ...]:
    return (
        step["step"],
        step["op"],
        "x".join(map(str, step["input"])),
        str(step["launches"]),
        f"{step['seconds'] * 1e6:,.1f}",
        f"{step['floor_seconds'] * 1e6:,.2f}",
        f"{step['floor_seconds'] / step['seconds']:.0%}",
        step["bound"],
        f"{step['bytes_per_second'] / 1e9:,.1f}",
        f"{step['flops'] / 1e9:,.1f}",
    )
