"""`mbv3fast stages`: what the whole network in one launch does, stage by stage."""

from __future__ import annotations

import click
import torch

from mbv3fast.cli.options import DTYPES
from mbv3fast.cluster import CLUSTERS, UncutError, cut, stage_names
from mbv3fast.cluster.latency import LAUNCH, StageWork, work_of
from mbv3fast.cluster.table import BLOCK, LINEAR, MEAN
from mbv3fast.factory import large, small

_COLUMNS = (
    *("stage", "group", "output", "step", "band", "KB", "products", "clocks"),
    *("finished", "sums", "weights", "to others", "barriers", "us"),
)
_ROW = "{:<20} {:>6} {:>11} {:>5} {:>5} {:>4} {:>8} {:>6} {:>8} {:>5} {:>7} {:>9} {:>8} {:>5}"


@click.command(short_help="Print the stages of the one-launch network.")
@click.argument("model", type=click.Choice(["large", "small"]))
@click.option("--size", type=click.IntRange(32), default=224, show_default=True, help="Height and width.")
@click.option("--blocks", type=click.Choice([str(count) for count in CLUSTERS]), default=str(CLUSTERS[0]))
@click.option("--dtype", type=click.Choice(["bfloat16", "float16"]), default="float16", show_default=True)
@click.option("--markdown", is_flag=True, help="A table for documents.")
def stages(model: str, size: int, blocks: str, dtype: str, markdown: bool) -> None:
    """Print how plan `network` cuts an image over a cluster of blocks; nothing is measured.

    Of a stage: the blocks of a group, which have rows of the image and share channels; its output; the channels and the
    rows of the output that are expanded at once; KB of shared memory, of 227; and of the busiest block products of
    tensor cores (m16n8k16) and the clocks that they take, thousands of numbers that are finished, thousands of
    multiply-adds of CUDA cores, KB of weights, KB for other blocks, barriers of the cluster + of the block; and how
    long all that may take.
    """
    with torch.device("meta"):  # counted, never computed
        plan = (large if model == "large" else small)().to(DTYPES[dtype]).eval().plan("cuda")
    try:
        found = cut(plan, (size, size), int(blocks))
    except UncutError as error:
        raise click.ClickException(str(error)) from error
    works = work_of(found.stages, found.chunks, found.cut.blocks)
    of = zip(stage_names(plan), works, found.taken, strict=True)
    rows = [_row(name, work, taken) for name, work, taken in of]
    seconds = LAUNCH + sum(work.busiest.seconds for work in works)
    barriers = sum(work.busiest.cluster_barriers for work in works)
    inner = 1 + sum(work.busiest.barriers for work in works)
    rows.append(("all", *[""] * (len(_COLUMNS) - 3), f"{barriers} + {inner}", f"{1e6 * seconds:.1f}"))
    title = f"{model}, input [1, 3, {size}, {size}], {dtype}, a cluster of {blocks}"
    click.echo(f"{title}: counted, not measured" + "\n" * markdown)
    for number, row in enumerate([_COLUMNS, *rows]):
        click.echo(f"| {' | '.join(row)} |" if markdown else _ROW.format(*row).rstrip())
        if markdown and number == 0:
            click.echo(f"| --- |{' ---: |' * (len(row) - 1)}")


def _row(name: str, work: StageWork, taken: int) -> tuple[str, ...]:
    stage, busiest, out = work.stage, work.busiest, work.stage.output
    block, vector = stage.kind == BLOCK, stage.kind in (MEAN, LINEAR)
    return (
        name,
        str(stage.sharing) if block else "-",
        str(stage.outputs) if vector else f"{out.height}x{out.width}x{out.channels}",
        str(stage.step) if block or stage.kind == MEAN else "-",
        str(stage.band) if block else "-",
        f"{taken / 1024:.0f}",
        f"{busiest.products:,}",
        f"{busiest.reading:,}",
        f"{busiest.finished / 1e3:,.0f}",
        f"{busiest.sums / 1e3:,.0f}",
        f"{busiest.weights / 1024:,.0f}",
        f"{busiest.remote / 1024:,.1f}",
        f"{busiest.cluster_barriers} + {busiest.barriers}",
        f"{1e6 * busiest.seconds:.1f}",
    )
