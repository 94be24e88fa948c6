"""`mbv3fast embed`: images to feature vectors."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from tqdm import tqdm

from mbv3fast.atomic import replacing
from mbv3fast.cli.images import batches, find_images, finish, report
from mbv3fast.cli.options import check_out, load_model, model_options, usable_cores


@click.command(short_help="Write images' feature vectors.")
@click.argument("paths", nargs=-1, required=True)
@model_options
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--workers", type=click.IntRange(0), default=usable_cores, help="Decoding processes; 0 for none.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The .npy file to write.")
def embed(paths: tuple[str, ...], batch_size: int, workers: int, out: Path, **model: Any) -> None:
    """Write the embedding of each image: one float32 row each, 1,280 numbers for Large, 1,024 for Small.

    \b
    mbv3fast embed photos/ --out features.npy

    The rows' paths are written beside it, one a line, to features.paths.txt. An unreadable image is reported,
    has no row, and the exit code is 3.
    """
    check_out(out, [".npy"])
    files = find_images(paths)
    network = load_model(**model)
    network.reset_classifier(0)
    parameter = next(network.parameters())
    embedded: list[str] = []
    raw = out.with_name(f"{out.name}.{os.getpid()}.raw.tmp")
    try:
        with raw.open("wb") as rows, tqdm(total=len(files), unit="image", disable=None) as bar:
            for batch in batches(files, network.transforms(), batch_size, workers):
                if batch.pixels is not None:
                    with torch.inference_mode():
                        features = network(batch.pixels.to(parameter.device, parameter.dtype))
                    rows.write(features.float().cpu().numpy().tobytes())
                    embedded += batch.paths
                report(batch.failures)
                bar.update(len(batch.paths) + len(batch.failures))
        _write(out, raw, embedded, network.head_hidden_size)
    finally:
        raw.unlink(missing_ok=True)
    finish(len(files) - len(embedded), len(files), out)


def _write(out: Path, raw: Path, embedded: list[str], width: int) -> None:
    """Put the header before the rows, whose number is known only now; the paths first, the .npy last."""
    with replacing(out.with_suffix(".paths.txt")) as names:
        lines = "".join(f"{_escaped(path)}\n" for path in embedded)
        names.write_text(lines, encoding="utf-8", errors="surrogateescape")
    header = {"descr": "<f4", "fortran_order": False, "shape": (len(embedded), width)}
    with replacing(out) as temporary, temporary.open("wb") as file, raw.open("rb") as rows:
        np.lib.format.write_array_header_1_0(file, header)
        shutil.copyfileobj(rows, file)


def _escaped(path: str) -> str:
    """A file name as one line: its line breaks, of whatever kind, as escapes."""
    return path if len(path.splitlines()) == 1 else path.encode("unicode_escape").decode()
