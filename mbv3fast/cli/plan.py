"""`mbv3fast plan`: the steps of a forward, counted."""

from __future__ import annotations

import json
from typing import Any

import click
import torch

from mbv3fast.backend import BACKENDS, BackendError
from mbv3fast.cli.options import DTYPES
from mbv3fast.factory import large, small


@click.command(short_help="Count the steps of a forward.")
@click.argument("model", type=click.Choice(["large", "small"]))
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--size", type=click.IntRange(32), default=224, show_default=True, help="Height and width.")
@click.option("--dtype", type=click.Choice(sorted(DTYPES)), default="float32", show_default=True)
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def plan(model: str, batch: int, size: int, dtype: str, backend: str, as_json: bool) -> None:
    """Print the fused steps of a network: shapes, activation bytes, weight bytes, multiply-adds, launches.

    \b
    mbv3fast plan large
    mbv3fast plan small --batch 8 --size 160 --json
    """
    try:
        with torch.device("meta"):  # counted, never computed
            network = (large if model == "large" else small)(backend=backend).to(DTYPES[dtype]).eval()
    except (BackendError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    counted = network.plan().to_dict((batch, 3, size, size))
    counted = {"model": model, "dtype": dtype, **counted}
    click.echo(json.dumps(counted, indent=2) if as_json else _table(counted))


def _table(plan: dict[str, Any]) -> str:
    row = "{:<22} {:<24} {:>20} {:>20} {:>9} {:>9} {:>9} {:>9} {:>4}"
    title = f"{plan['model']}, input {plan['input']}, {plan['dtype']}, backend {plan['backend']}"
    lines = [title, row.format("step", "op", "input", "output", "read KB", "write KB", "weight KB", "MMAC", "runs")]
    for step in plan["steps"]:
        shapes = ("x".join(map(str, shape)) for shape in (step["shapes"]["inputs"][0], step["shapes"]["output"]))
        lines.append(row.format(step["name"], step["op"], *shapes, *_numbers(step)))
    lines.append(row.format("total", "", "", "", *_numbers(plan["totals"])))
    return "\n".join(lines)


def _numbers(counts: dict[str, Any]) -> tuple[str, ...]:
    kilobytes = (f"{counts[name] / 1e3:,.0f}" for name in ("bytes_read", "bytes_written", "weight_bytes"))
    return (*kilobytes, f"{counts['macs'] / 1e6:,.2f}", str(counts["launches"]))
