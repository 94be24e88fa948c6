"""`mbv3fast tiles`: how CUDA launches are cut into blocks, and what follows from that."""

from __future__ import annotations

from collections.abc import Iterator

import click
import torch

from mbv3fast.cli.options import DTYPES
from mbv3fast.cost import gpu_target
from mbv3fast.cuda.compiled import find
from mbv3fast.cuda.launch import Kernel
from mbv3fast.cuda.work import work
from mbv3fast.factory import large, small
from mbv3fast.gpus import GPUS, Gpu
from mbv3fast.launches import PlannedLaunch, moved, planned_launches

_COLUMNS = (
    "step",
    "kernel",
    "tile",
    "step's",
    "splits",
    "CTAs",
    "at once",
    "KB",
    "serial",
    "halo",
    "moves",
    "asks for",
)
_ROW = "{:<20} {:<18} {:>8} {:>7} {:>6} {:>7} {:>7} {:>6} {:>6} {:>5} {:>9} {:>9}"


@click.command(short_help="Print the tiles of CUDA kernels.")
@click.argument("model", type=click.Choice(["large", "small"]))
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--size", type=click.IntRange(32), default=224, show_default=True, help="Height and width.")
@click.option("--dtype", type=click.Choice(["bfloat16", "float16"]), default="float16", show_default=True)
@click.option("--gpu", type=click.Choice(list(GPUS)), default="h100", show_default=True)
@click.option("--markdown", is_flag=True, help="A table for documents.")
def tiles(model: str, batch: int, size: int, dtype: str, gpu: str, markdown: bool) -> None:
    """Print how the CUDA plan's launches are cut into blocks on a GPU, which need not be there; nothing is measured.

    Of a launch: the tile of pixels, or of pixels and outputs; the channels of a step; among how many blocks channels
    are split; the blocks (CTAs), and how many a multiprocessor holds at once by shared memory and registers; a block's
    shared memory in KB of 1024 bytes; trips to memory one after another; pixels read over those that there are; KB that
    it must move, each tensor once, and that all blocks ask for.

    \b
    mbv3fast tiles large
    mbv3fast tiles small --batch 128 --gpu a100 --markdown
    """
    chip = GPUS[gpu]
    with torch.device("meta"):  # counted, never computed
        plan = (large if model == "large" else small)().to(DTYPES[dtype]).eval().plan("cuda")
    target = gpu_target(plan, chip)
    click.echo(
        f"{model}, input {[batch, 3, size, size]}, {dtype}, {chip.name}: counted, not measured" + "\n" * markdown
    )
    rows = [_COLUMNS, *_rows(list(planned_launches(plan, (batch, 3, size, size), target)), chip)]
    for number, row in enumerate(rows):
        click.echo(f"| {' | '.join(row)} |" if markdown else _ROW.format(*row).rstrip())
        if markdown and number == 0:
            click.echo(f"| --- | --- |{' ---: |' * len(_COLUMNS[2:])}")


def _rows(launches: list[PlannedLaunch], chip: Gpu) -> Iterator[tuple[str, ...]]:
    for planned in launches:
        launch, cut = planned.launch, planned.launch.constants
        if not isinstance(launch.kernel, Kernel):
            continue  # Triton's
        done, (moves,) = work(launch), moved([launch])
        height, width = (
            cut.get(f"tile_{a}", cut.get(f"tile_{b}")) for a, b in (("height", "rows"), ("width", "outputs"))
        )
        at_once, shared = _held(planned, chip)
        yield (
            planned.step.name,
            launch.kernel.name,
            f"{height}x{width}" if height else "-",
            str(cut.get("step", "-")),
            str(cut.get("splits", cut.get("cluster", "-"))),
            f"{launch.grid:,}",
            at_once,
            shared,
            str(done.serial),
            f"{done.halo:.2f}",
            f"{moves.all / 1e3:,.0f}",
            f"{done.issued / 1e3:,.0f}",
        )


def _held(planned: PlannedLaunch, chip: Gpu) -> tuple[str, str]:
    """Blocks that a multiprocessor holds at once, and a block's shared memory; of blocks' kernels alone."""
    launch, sizes = planned.launch, planned.launch.sizes
    if launch.kernel.name != "inverted_residual":
        return "-", "-"
    tile = find(launch.constants, sizes, "expand_weight" in launch.reads)
    return str(tile.resident(sizes["inputs"], chip.sm)), f"{tile.shared_bytes(sizes['inputs']) / 1024:.0f}"
