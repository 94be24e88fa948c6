"""`mbv3fast export`: a model as a file that runs without this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from mbv3fast.backend import BackendError
from mbv3fast.cli.options import check_out, evaluated_size, load_model, model_options
from mbv3fast.deploy import OPSET, SUFFIXES, ExportError
from mbv3fast.deploy import export as export_model
from mbv3fast.fold import UnsupportedError


@click.command(short_help="Write a .pt2 or .onnx file.")
@click.argument("out", type=click.Path(path_type=Path))
@model_options
@click.option("--size", type=click.IntRange(32), nargs=2, help="Height and width; the weights' own by default.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, help="Images to be fast for; all run.")
@click.option("--bytes", "uint8", is_flag=True, help="Take bytes [N, H, W, C], and normalise them.")
@click.option("--opset", type=click.IntRange(18), help=f"Of an .onnx file, {OPSET} by default.")
@click.option("--no-check", is_flag=True, help="Don't run the file afterwards.")
def export(
    out: Path, size: tuple[int, int] | None, batch: int, uint8: bool, opset: int | None, no_check: bool, **model: Any
) -> None:
    """Write a model as OUT: a .pt2 (AOTInductor, for Python and C++) or an .onnx file.

    \b
    mbv3fast export small.pt2 --weights digits
    mbv3fast export large.pt2 --device cuda --dtype float16 --bytes   # with our kernels, for this GPU
    mbv3fast export large.onnx --weights mine.safetensors

    Neither needs this package to run. The file is run in a fresh process, and compared with the model in float64.
    """
    check_out(out, SUFFIXES, hint="OUT")
    network = load_model(**model)
    try:
        made = export_model(
            network,
            out,
            size=size or evaluated_size(network),
            batch=batch,
            uint8=uint8,
            backend=model["backend"],
            opset=opset,
            verify=not no_check,
        )
    except (ExportError, BackendError, UnsupportedError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{made.path}: {made.bytes / 2**20:.1f} MiB, {made.contents}")
    click.echo(f"input: {made.input}")
    if out.suffix == ".pt2":
        click.echo("set AOTI_RUNTIME_CHECK_INPUTS=1 where it is read, or other inputs are taken for this one")
    if made.difference is None:
        click.echo("not tried")
    else:
        batches = ", ".join(str(shape[0]) for shape in made.tried)
        click.echo(f"run in a fresh process, for batches of {batches}: it errs by {made.difference}")
