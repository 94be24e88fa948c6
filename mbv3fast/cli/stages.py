"""`mbv3fast stages`: what the whole network in one launch does, stage by stage."""

from __future__ import annotations

import click
import torch

from mbv3fast.cli.options import DTYPES
from mbv3fast.cluster import CLUSTERS, UncutError, cut
from mbv3fast.cluster.latency import LAUNCH, StageWork, work_of
from mbv3fast.factory import large, small

_COLUMNS = (
    *("stage", "blocks share", "output", "step's", "rows at once", "KB"),
    *("products", "sums", "weights", "to others", "barriers", "us"),
)
_ROW = "{:<20} {:<12} {:>11} {:>6} {:>12} {:>6} {:>8} {:>9} {:>7} {:>9} {:>8} {:>6}"


@click.command(short_help="Print the stages of the one-launch network.")
@click.argument("model", type=click.Choice(["large", "small"]))
@click.option("--size", type=click.IntRange(32), default=224, show_default=True, help="Height and width.")
@click.option("--blocks", type=click.Choice([str(count) for count in CLUSTERS]), default=str(CLUSTERS[0]))
@click.option("--dtype", type=click.Choice(["bfloat16", "float16"]), default="float16", show_default=True)
@click.option("--markdown", is_flag=True, help="A table for documents.")
def stages(model: str, size: int, blocks: str, dtype: str, markdown: bool) -> None:
    """Print how plan `network` cuts an image over a cluster of blocks; nothing is measured.

    Of a stage: what blocks share; its output; the channels and the rows of the output that are expanded at once; KB of
    shared memory, of 227; and of the busiest block products of tensor cores (m16n8k16), thousands of multiply-adds of
    CUDA cores, KB of weights and KB for other blocks; the cluster's barriers; and how long that may take.
    """
    with torch.device("meta"):  # counted, never computed
        plan = (large if model == "large" else small)().to(DTYPES[dtype]).eval().plan("cuda")
    try:
        found = cut(plan, (size, size), int(blocks))
    except UncutError as error:
        raise click.ClickException(str(error)) from error
    works = work_of(found.stages, found.chunks, found.cut.blocks)
    names = [step.name for step in plan.steps]
    names.insert([step.op for step in plan.steps].index("pointwise_mean_linear"), "last convolution")
    rows = [_row(name, work, taken) for name, work, taken in zip(names, works, found.taken, strict=True)]
    seconds = LAUNCH + sum(work.busiest.seconds for work in works)
    barriers = 1 + sum(work.busiest.cluster_barriers for work in works)
    rows.append(("all", *[""] * 9, str(barriers), f"{1e6 * seconds:.1f}"))
    title = f"{model}, input [1, 3, {size}, {size}], {dtype}, a cluster of {blocks}"
    click.echo(f"{title}: counted, not measured" + "\n" * markdown)
    for number, row in enumerate([_COLUMNS, *rows]):
        click.echo(f"| {' | '.join(row)} |" if markdown else _ROW.format(*row).rstrip())
        if markdown and number == 0:
            click.echo(f"| --- | --- |{' ---: |' * (len(row) - 2)}")


def _row(name: str, work: StageWork, taken: int) -> tuple[str, ...]:
    stage, busiest, out = work.stage, work.busiest, work.stage.output
    return (
        name,
        {"stem": "rows", "mean": "channels", "linear": "outputs"}.get(work.name, work.name),
        str(stage.outputs) if work.name in ("mean", "linear") else f"{out.height}x{out.width}x{out.channels}",
        str(stage.step) if work.name in ("rows", "channels", "mean") else "-",
        str(stage.band) if work.name == "rows" else "-",
        f"{taken / 1024:.0f}",
        f"{busiest.products:,}",
        f"{busiest.sums / 1e3:,.0f}",
        f"{busiest.weights / 1024:,.0f}",
        f"{busiest.remote / 1024:,.1f}",
        str(busiest.cluster_barriers),
        f"{1e6 * busiest.seconds:.1f}",
    )
