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
from mbv3fast.factory import large, small
from mbv3fast.fast import FusedMobileNetV3
from mbv3fast.gpus import Gpu
from mbv3fast.plan import Plan
from mbv3fast.steps import step_arguments, step_inputs, step_run
from mbv3fast.timing import Run, device_seconds, latency_seconds, replayed, waiter

_CALLS = 20  # of a step in a CUDA graph, where the host's time has no part
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
    """Time every step of a network by itself, then the whole, and print the floor beside each.

    The floor is the least time that the device's memory and arithmetic allow (docs/cost-model.md): by the vendor's
    figures for GPUs that are known, else by a copy and a matrix product that are timed first, and may be beaten. On a
    GPU steps run in a CUDA graph with a warm L2 cache. The whole is timed from the call to its result.

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
            whole = _whole(network, x, rounds)
            measured = _measured(network.plan(), x, rounds)
    except (BackendError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    found = {
        "model": model,
        "input": [batch, 3, size, size],
        "dtype": str(kind).removeprefix("torch."),
        **measured,
        **whole,
    }
    click.echo(json.dumps(found, indent=2) if as_json else _table(found))


def _whole(network: FusedMobileNetV3, x: torch.Tensor, rounds: int) -> dict[str, Any]:
    """A call's seconds, median; who serves it."""
    decision = network.explain(x)
    if not decision.fused:
        raise ValueError(f"no engine serves it: {decision.reason}")
    seconds = latency_seconds(lambda: network(x), waiter(x.device), rounds)
    return {"served_by": decision.reason, "call_seconds": statistics.median(seconds)}


def _measured(plan: Plan, x: torch.Tensor, rounds: int) -> dict[str, Any]:
    """Each step's seconds, median, and its cost on the device of `x`."""
    chip, guessed = chip_of(x.device)
    shape = tuple(x.shape)
    costs = plan_cost(plan, shape, chip).steps
    steps = []
    bar = tqdm(step_inputs(plan, shape), "timing", unit="step", leave=False, disable=None)
    for (step, inputs), cost in zip(bar, costs, strict=True):
        run = step_run(plan.backend, step, step_arguments(step, inputs, plan.dtype, x.device), x.device)
        seconds = statistics.median(_seconds(run, x.device, rounds))
        steps.append(
            {
                "step": step.name,
                "op": step.op,
                "input": list(inputs["x"]),
                "launches": cost.launches,
                "seconds": seconds,
                "floor_seconds": cost.floor_seconds,
                "bound": cost.bound if x.is_cuda or cost.bound == "memory" else "arithmetic",
                "bytes_per_second": cost.compulsory / seconds,
                "flops": 2 * cost.macs / seconds,
            }
        )
    return {"backend": plan.backend, "chip": _described(chip), "chip_is_measured": guessed, "steps": steps}


def _seconds(run: Run, device: torch.device, rounds: int) -> list[float]:
    if device.type == "cpu":
        return latency_seconds(run, waiter(device), rounds)
    with torch.cuda.device(device):
        return device_seconds(replayed(run, _CALLS), rounds, calls=_CALLS)


def _described(chip: Gpu) -> dict[str, Any]:
    return {
        "name": chip.name,
        "memory_bytes_per_second": chip.memory_bandwidth,
        "cache_bytes": chip.l2_bytes,
        "cache_bytes_per_second": chip.l2_bandwidth,
        "flops": {**chip.tensor_flops, "float32": chip.fp32_flops},
    }


def _table(found: dict[str, Any]) -> str:
    chip, steps = found["chip"], found["steps"]
    source = "measured here" if found["chip_is_measured"] else "the vendor's figures"
    rates = (
        f"{chip['memory_bytes_per_second'] / 1e9:,.0f} GB/s, {chip['flops']['float32'] / 1e12:,.2f} TFLOP/s in float32"
    )
    lines = [
        f"{found['model']}, input {found['input']}, {found['dtype']}, on {chip['name']} ({source}: {rates})",
        _ROW.format(*_COLUMNS),
        *(_ROW.format(*_cells(step)).rstrip() for step in steps),
    ]
    taken, floor = (sum(step[name] for step in steps) for name in ("seconds", "floor_seconds"))
    runs = sum(step["launches"] for step in steps)
    total = (
        "all steps",
        "",
        "",
        runs,
        f"{taken * 1e6:,.1f}",
        f"{floor * 1e6:,.2f}",
        f"{floor / taken:.0%}",
        "",
        "",
        "",
    )
    call = found["call_seconds"]
    lines += [_ROW.format(*total).rstrip(), ""]
    lines.append(
        f"a call      {call * 1e6:,.1f} us, {found['input'][0] / call:,.0f} images/s, {floor / call:.0%} of its floor"
    )
    return "\n".join([*lines, f"served by   {found['served_by']}"])


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
