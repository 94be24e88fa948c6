"""`mbv3fast classify`: what is on these images?"""

from __future__ import annotations

import hashlib
import unicodedata
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from tqdm import tqdm

from mbv3fast.assets import imagenet_labels
from mbv3fast.cli.images import Batch, batches, find_images, finish, report
from mbv3fast.cli.journal import Journal
from mbv3fast.cli.options import load_model, model_options, usable_cores
from mbv3fast.cli.tables import write_atomically, writer_for
from mbv3fast.fast import FusedMobileNetV3


@click.command(short_help="Say what is on images.")
@click.argument("paths", nargs=-1, required=True)
@model_options
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Predictions an image.")
@click.option("--batch-size", type=click.IntRange(1), default=32, show_default=True)
@click.option("--workers", type=click.IntRange(0), default=usable_cores, help="Decoding processes; 0 for none.")
@click.option("--out", type=click.Path(path_type=Path), help="A .csv, .jsonl or .parquet file instead of the screen.")
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped (needs the same --out).")
def classify(
    paths: tuple[str, ...], top: int, batch_size: int, workers: int, out: Path | None, resume: bool, **model: Any
) -> None:
    """Classify images: files, folders (searched for images) or quoted patterns.

    \b
    mbv3fast classify photo.jpg
    mbv3fast classify photos/ --out labels.csv
    mbv3fast classify 'photos/**/*.png' --weights mine.safetensors --top 1 --out labels.parquet

    An unreadable image is reported and skipped, and the exit code is 3. With --out the file appears whole when
    the run is done; a run stopped before goes on with --resume, and ends with the same file.
    """
    if out is not None:
        writer_for(out)
    elif resume:
        raise click.UsageError("--resume needs --out")
    files = find_images(paths)
    network = load_model(**model)
    if not network.num_classes:
        raise click.ClickException(f"{model['weights']} has no classifier (num_classes=0); use `mbv3fast embed`")
    if out is None:
        failures = _to_screen(network, files, top, batch_size, workers)
    else:
        failures = _to_file(network, files, top, batch_size, workers, out, resume)
    finish(failures, len(files), out)


def predictions(model: FusedMobileNetV3, pixels: Tensor, top: int) -> list[list[dict[str, Any]]]:
    """The `top` classes of each image, best first: class_index, label, probability rounded to 6 digits.

    pixels: [N, C, H, W], preprocessed or uint8.
    """
    parameter = next(model.parameters())
    dtype = torch.uint8 if pixels.dtype == torch.uint8 else parameter.dtype
    with torch.inference_mode():
        logits = model(pixels.to(parameter.device, dtype)).float()
    if not logits.isfinite().all():
        raise click.ClickException(
            "the model's outputs are not finite: damaged weights, or a dtype too narrow for them"
        )
    best = logits.softmax(1).topk(min(top, logits.shape[1]))
    names = class_names(model, logits.shape[1])
    return [
        [{"class_index": c, "label": _plain(names[c]), "probability": round(p, 6)} for p, c in zip(ps, cs, strict=True)]
        for ps, cs in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def class_names(model: FusedMobileNetV3, count: int) -> tuple[str, ...]:
    """The checkpoint's own labels, ImageNet's for 1,000 classes, or "class 0", "class 1", …"""
    labels = model.description().labels
    if labels and len(labels) == count:
        return labels
    return imagenet_labels() if count == 1000 else tuple(f"class {i}" for i in range(count))


def _plain(label: str) -> str:
    """A label from a file of whatever origin without what moves a terminal's cursor or breaks a line."""
    unfit = ("Cc", "Cs", "Zl", "Zp")
    return "".join(" " if unicodedata.category(character) in unfit else character for character in label)


def _record(model: FusedMobileNetV3, batch: Batch, top: int) -> dict[str, Any]:
    found = [] if batch.pixels is None else predictions(model, batch.pixels, top)
    rows = [{"path": path, "predictions": p} for path, p in zip(batch.paths, found, strict=True)]
    return {"rows": rows, "failures": batch.failures}


def _to_screen(model: FusedMobileNetV3, files: list[str], top: int, batch_size: int, workers: int) -> int:
    failures = 0
    for batch in batches(files, model.transforms(), batch_size, workers):
        record = _record(model, batch, top)
        for row in record["rows"]:
            click.echo(click.format_filename(row["path"]))
            for p in row["predictions"]:
                click.echo(f"  {p['probability']:7.2%}  {p['label']}")
        report(batch.failures)
        failures += len(batch.failures)
    return failures


def _to_file(
    model: FusedMobileNetV3, files: list[str], top: int, batch_size: int, workers: int, out: Path, resume: bool
) -> int:
    parameter = next(model.parameters())
    job = {
        "images": hashlib.sha256("\0".join(files).encode("utf-8", "surrogateescape")).hexdigest(),
        "weights": fingerprint(model),
        "top": top,
        "batch size": batch_size,
        "device": parameter.device.type,
        "dtype": str(parameter.dtype),
    }
    journal = Journal(out, job, resume=resume)
    if resume and journal.is_new and out.exists():
        journal.remove()
        raise click.ClickException(f"{out} is there, and no stopped run: leave out --resume to begin anew")
    if resume and not journal.done:
        click.echo("no finished batches to go on from: starting with the first image", err=True)
    done = min(journal.done * batch_size, len(files))
    try:
        with tqdm(total=len(files), initial=done, unit="image", disable=None) as bar:
            for batch in batches(files, model.transforms(), batch_size, workers, skip=journal.done):
                journal.add(_record(model, batch, top))
                report(batch.failures)
                bar.update(len(batch.paths) + len(batch.failures))
    except (KeyboardInterrupt, SystemExit, click.ClickException):
        click.echo(f"stopped; {journal.path} holds what is done: go on with the same command and --resume", err=True)
        raise
    write_atomically(out, (row for record in journal.records() for row in record["rows"]))
    journal.remove()
    return journal.failed


def fingerprint(model: FusedMobileNetV3) -> str:
    """A hash of everything that decides the model's predictions."""
    digest = hashlib.sha256(model.description().to_json().encode())
    for key, tensor in model.state_dict().items():
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().float().numpy().tobytes())
    return digest.hexdigest()
