"""`mbv3fast kernels`: what the compiler makes of a plan's launches, without a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click
import torch

from mbv3fast.backend import BackendError, interpreted
from mbv3fast.cli.options import DTYPES
from mbv3fast.factory import large, small
from mbv3fast.launches import PlannedLaunch, planned_launches

if TYPE_CHECKING:
    from mbv3fast.kernels.offline import Compiled

ARCHITECTURES = ("75", "80", "86", "89", "90", "100", "120")
_COLUMNS = ("step", "kernel", "runs", "CTAs", "registers", "spilled B", "shared KB", "activation KB", "partial KB")


@click.command(short_help="Compile the kernels of a forward.")
@click.argument("model", type=click.Choice(["large", "small"]))
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True)
@click.option("--size", type=click.IntRange(32), default=224, show_default=True, help="Height and width.")
@click.option("--dtype", type=click.Choice(sorted(DTYPES)), default="float16", show_default=True)
@click.option("--arch", type=click.Choice(ARCHITECTURES), default="90", show_default=True, help="Compute capability.")
@click.option("--markdown", is_flag=True, help="A table for documents.")
def kernels(model: str, batch: int, size: int, dtype: str, arch: str, markdown: bool) -> None:
    """Compile every kernel that a network launches, and print what the compiler says of it; no GPU is needed.

    A row is a distinct launch: the first step that makes it, how many runs it has in a forward, its programs (CTAs),
    a thread's registers and the bytes of them that it spills to memory, a program's shared memory, the bytes of
    activations that are read and written, and of the float32 sums and scales that kernels pass on. Launches are
    configured as for the H100.

    \b
    mbv3fast kernels large
    mbv3fast kernels small --batch 128 --arch 80 --markdown
    """
    if interpreted():
        raise click.ClickException("Triton's interpreter compiles nothing: needs TRITON_INTERPRET unset, got 1")
    try:
        with torch.device("meta"):  # compiled, never computed
            network = (large if model == "large" else small)(backend="triton").to(DTYPES[dtype]).eval()
    except (BackendError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    shape = (batch, 3, size, size)
    line = _markdown if markdown else _plain
    click.echo(f"{model}, input {list(shape)}, {dtype}, sm_{arch}" + "\n" * markdown)
    click.echo(line(_COLUMNS))
    if markdown:
        click.echo(line(("---", "---", *["---:"] * len(_COLUMNS[2:]))))
    for row in _rows(list(planned_launches(network.plan(), shape)), int(arch)):
        click.echo(line(row))


def _rows(launches: list[PlannedLaunch], capability: int) -> Iterator[tuple[str, ...]]:
    """The cells of each distinct launch, as soon as it is compiled."""
    from mbv3fast.kernels.offline import binary, compile_launch

    keys = [(binary(planned.launch), planned.launch.grid, planned.traffic) for planned in launches]
    for index, (planned, key) in enumerate(zip(launches, keys, strict=True)):
        if key not in keys[:index]:
            yield _row(planned, keys.count(key), compile_launch(planned.launch, capability))


def _row(planned: PlannedLaunch, runs: int, compiled: Compiled) -> tuple[str, ...]:
    step, launch, traffic = planned
    numbers = (runs, launch.grid, compiled.registers, compiled.spilled)
    moved = (traffic.read + traffic.written, traffic.partial)
    return (
        step.name,
        launch.kernel.__name__,
        *(f"{number:,}" for number in numbers),
        f"{compiled.shared / 1024:,.1f}",
        *(f"{size / 1e3:,.1f}" for size in moved),
    )


def _plain(cells: tuple[str, ...]) -> str:
    return "{:<20} {:<25} {:>4} {:>7} {:>9} {:>9} {:>9} {:>13} {:>10}".format(*cells)


def _markdown(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"
