"""Classify more images than one process can: Ray Data on one machine or on a cluster.

    python examples/ray_classify.py photos/ --out labels
    python examples/ray_classify.py shards/ --columns image.bytes image.path --out labels
    python examples/ray_classify.py /shared/photos --out labels --address auto --device cuda --actors 8

The input is cut into parts. Ray tasks decode and resize them to bytes, on CPUs alone; actors, each with a model (and a
GPU), classify those; this process writes a part's predictions to labels/part-000000.parquet once it has them all. A
part appears whole or not at all, and its rows depend on nothing but the options: a job that was stopped or killed goes
on by the same command with the parts that are missing, and no row is there twice. The columns are those of `mbv3fast
classify --out x.parquet`, and `error`: an image that can't be read is a row too, and the exit code is 3.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from pyarrow import parquet
from tqdm import tqdm

from mbv3fast import Preprocess
from mbv3fast.atomic import replacing
from mbv3fast.cli.classify import fingerprint, predictions
from mbv3fast.cli.images import Item, find_images, finish, read_bytes, read_file, report
from mbv3fast.cli.journal import claimed
from mbv3fast.cli.options import DTYPES, load_model, model_options
from mbv3fast.cli.tables import as_utf8, flatten, parquet_schema
from mbv3fast.fast import FusedMobileNetV3

Part = dict[str, Any]  # part: its number; images: how many; files: paths as bytes; groups: row groups of a parquet file
Columns = tuple[str, str]  # of a parquet file: encoded images, and what each is called

# A decoded batch, one row, since rows are what Ray never cuts; pixels are uint8 [batch size, C, H, W].
INT, TEXTS = pa.int32(), pa.list_(pa.string())
BATCH = pa.schema({"part": INT, "first": INT, "paths": TEXTS, "errors": TEXTS, "pixels": pa.large_binary()})
OUTPUT = parquet_schema().append(pa.field("error", pa.string()))
CLASSIFIED = pa.schema([("part", INT), ("image", INT), *OUTPUT])
BLOCK = 32 * 2**20  # bytes of decoded images that travel to an actor at once


def cut(files: list[str], size: int) -> Iterator[Part]:
    """`size` image files a part."""
    for start in range(0, len(files), size):
        names = [os.fsencode(file) for file in files[start : start + size]]
        yield {"images": len(names), "files": names, "groups": []}


def cut_parquet(files: list[str], size: int, columns: Columns) -> Iterator[Part]:
    """A part of as many row groups of one file as make `size` images. Raises click.ClickException for a wrong file."""
    for file in files:
        try:
            metadata = parquet.read_metadata(file)
        except (OSError, pa.ArrowException) as error:
            raise click.ClickException(f"{file}: {error}") from error
        found = metadata.schema.to_arrow_schema().empty_table().flatten().column_names  # as read_part() sees them
        for column in columns:
            if column not in found:
                raise click.ClickException(f"--columns: {file} has no {column!r}, it has {', '.join(found)}")
        images, groups = 0, []
        for group in range(metadata.num_row_groups):
            images += metadata.row_group(group).num_rows
            groups.append(group)
            if images >= size or (images and group == metadata.num_row_groups - 1):
                yield {"images": images, "files": [os.fsencode(file)], "groups": groups}
                images, groups = 0, []


def read_part(part: Part, folder: str, columns: Columns | None, preprocess: Preprocess) -> Iterator[Item]:
    """(path, uint8 pixels [C, H, W] or None, reason) of each image of a part, in order; paths start at `folder`."""
    files = [os.fsdecode(file) for file in part["files"]]
    if columns is None:
        for file in files:
            yield file, *read_file(os.path.join(folder, file), preprocess.pixels)
        return
    done = 0
    try:
        table = parquet.ParquetFile(os.path.join(folder, files[0]))
        for records in table.iter_batches(64, row_groups=part["groups"], columns=list(columns)):
            flat = pa.Table.from_batches([records]).flatten()  # image {bytes, path} to image.bytes, image.path
            for content, name in zip(*(flat[column].to_pylist() for column in columns), strict=True):
                yield str(name), *read_bytes(content, str(name), preprocess.pixels)
                done += 1
    except (OSError, pa.ArrowException) as error:
        for _ in range(done, part["images"]):
            yield files[0], None, f"{type(error).__name__}: {error}"


def decode(
    parts: pa.Table, folder: str, columns: Columns | None, preprocess: Preprocess, batch_size: int
) -> Iterator[pa.Table]:
    """A Ray task: rows of BATCH. The last is filled up, since each shape is tried and captured anew on a GPU."""
    for part in parts.to_pylist():
        images = read_part(part, folder, columns, preprocess)
        for first in range(0, part["images"], batch_size):
            batch = list(islice(images, batch_size))
            side = preprocess.crop or 0  # never None, `load_model` refuses that
            pixels = np.zeros((batch_size, len(preprocess.mean), side, side), np.uint8)
            for i, (_, image, _) in enumerate(batch):
                if image is not None:
                    pixels[i] = image
            row = {"part": part["part"], "first": first, "pixels": pixels.tobytes()}
            row |= {"paths": [as_utf8(path) for path, _, _ in batch], "errors": [reason for _, _, reason in batch]}
            yield pa.Table.from_pylist([row], BATCH)


class Classifier:
    """A Ray actor: a model on its device, which makes rows of CLASSIFIED of rows of BATCH."""

    def __init__(self, model: Any, device: str, options: dict[str, Any]) -> None:
        import ray

        self.model = ray.get(model).to(device, DTYPES[options["dtype"]])
        self.model.backend = options["backend"]
        self.top = options["top"]

    def __call__(self, batches: pa.Table) -> pa.Table:
        rows = [row for batch in batches.to_pylist() for row in self.rows(batch)]
        return pa.Table.from_pylist(rows, CLASSIFIED)

    def rows(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """A row for each prediction, or for the reason why an image has none."""
        channels, crop = len(self.model.preprocess.mean), self.model.preprocess.crop
        pixels = torch.frombuffer(bytearray(batch["pixels"]), dtype=torch.uint8).view(-1, channels, crop, crop)
        found = predictions(self.model, pixels, self.top)
        for i, (path, error) in enumerate(zip(batch["paths"], batch["errors"], strict=True)):
            rows = [{"path": path, "error": error}] if error else flatten({"path": path, "predictions": found[i]})
            yield from ({"part": batch["part"], "image": batch["first"] + i, **row} for row in rows)


def part_file(out: Path, part: int) -> Path:
    return out / f"part-{part:06d}.parquet"


def write_parts(tables: Iterable[pa.Table], parts: list[Part], out: Path) -> None:
    """Write each part once its rows have all come. `tables` are of CLASSIFIED, in any order."""
    missing = {part["part"]: part["images"] for part in parts}
    pending: dict[int, list[pa.Table]] = defaultdict(list)
    with tqdm(total=sum(missing.values()), unit="image", disable=None) as bar:
        for table in tables:
            for part in pc.unique(table["part"]).to_pylist():
                rows = table.filter(pc.field("part") == part)
                images = len(rows.filter(pc.field("rank").is_null() | (pc.field("rank") == 1)))
                bar.update(images)
                missing[part] -= images
                pending[part].append(rows)
                if not missing[part]:
                    whole = pa.concat_tables(pending.pop(part)).sort_by([("image", "ascending"), ("rank", "ascending")])
                    with replacing(part_file(out, part)) as temporary:
                        parquet.write_table(whole.select(OUTPUT.names), temporary)
                    failures = whole.filter(pc.field("error").is_valid()).to_pylist()
                    report([(row["path"], row["error"]) for row in failures])


def count_failures(file: Path) -> int:
    """The images of a part that could not be read. Raises click.ClickException for a file that isn't whole."""
    try:
        errors = parquet.read_table(file, columns=["error"])["error"]
    except (OSError, KeyError, pa.ArrowException) as error:
        raise click.ClickException(f"{file} is damaged ({error}): delete it, and repeat the command") from error
    return len(errors) - errors.null_count


def start_ray(address: str | None) -> Any:
    """Ray, connected to the cluster at `address`; or started here, listening on the loopback interface alone."""
    if address is None:
        # Read as ray is imported: 127.0.0.1 for the machine's address, which macOS and Windows have by default.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray.data

    if not ray.is_initialized():
        ray.init(address or "local", include_dashboard=False, logging_level=logging.WARNING)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK
    return ray


def pool(found: dict[str, float], device: str, actors: int | None) -> tuple[str, int]:
    """Device and number of actors on a cluster of these resources. Raises click.ClickException where they lack."""
    cpus, gpus = int(found.get("CPU", 0)), int(found.get("GPU", 0))
    device = ("cuda" if gpus else "cpu") if device == "auto" else device
    actors = actors or max(1, gpus if device == "cuda" else cpus // 2)
    if device == "cuda" and actors > gpus:
        raise click.ClickException(f"--actors: {actors} on cuda need a GPU each, there are {gpus}")
    if actors >= cpus:  # with a GPU too; without one left for decoding the job would wait for ever
        raise click.ClickException(f"--actors: {actors} need a CPU each, and decoding another one; there are {cpus}")
    return device, actors


def pipeline(ray: Any, parts: list[Part], reading: dict[str, Any], model: dict[str, Any], actors: int) -> Any:
    """The Ray dataset of what is predicted for `parts`: rows of CLASSIFIED. Two stages, and what each is given."""
    batches = ray.data.from_items(parts, override_num_blocks=len(parts)).map_batches(
        decode,
        fn_kwargs=reading,
        batch_size=1,  # of rows: a part here, a batch of images below
        batch_format="pyarrow",
        num_cpus=1,
        memory=4 * BLOCK,  # what a task holds; the actors ask for none, or Ray would fuse the two
    )
    return batches.map_batches(
        Classifier,
        fn_constructor_kwargs=model,
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        **({"num_gpus": 1} if model["device"] == "cuda" else {"num_cpus": 1}),
    )


def classify(
    parts: list[Part], network: FusedMobileNetV3, out: Path, actors: int | None, address: str | None, options: Any
) -> None:
    """Predict and write `parts`. Raises click.ClickException for what a task or an actor raised."""
    ray = start_ray(address)
    device, actors = pool(ray.cluster_resources(), options["device"], actors)
    images = {"folder": os.getcwd(), "columns": options["columns"]}
    reading = {**images, "batch_size": options["batch_size"], "preprocess": network.preprocess}
    model = {"model": ray.put(network), "device": device, "options": options}
    try:
        classified = pipeline(ray, parts, reading, model, actors)
        write_parts(classified.iter_batches(batch_size=None, batch_format="pyarrow"), parts, out)
    except ray.exceptions.RayError as error:  # several tracebacks, of which the first is what was raised there
        raised = re.findall(r"^[\w.]+(?:Error|Exception): .+", str(error), re.MULTILINE)
        raise click.ClickException(raised[0] if raised else str(error)) from error


@click.command()
@click.argument("paths", nargs=-1, required=True)
@model_options
@click.option("--columns", nargs=2, help="Read .parquet files: their columns of encoded images and of names.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="A folder of its own.")
@click.option("--top", type=click.IntRange(1), default=5, show_default=True, help="Predictions an image.")
@click.option("--batch-size", type=click.IntRange(1), default=64, show_default=True)
@click.option("--part", "size", type=click.IntRange(1), default=4096, show_default=True, help="Images a file holds.")
@click.option("--actors", type=click.IntRange(1), help="Models at work.  [default: all GPUs, or half of the CPUs]")
@click.option("--address", help="A Ray cluster, auto for the one that runs here; left out, one is started.")
def main(paths: tuple[str, ...], out: Path, size: int, actors: int | None, address: str | None, **options: Any) -> None:
    """Classify images: files, folders (searched for images) or quoted patterns; with --columns, of .parquet files."""
    if options["device"] not in ("auto", "cpu", "cuda"):
        raise click.BadParameter(f"{options['device']!r}: needs auto, cpu or cuda", param_hint="--device")
    columns = options["columns"]
    if columns:
        found = cut_parquet(find_images(paths, (".parquet",), "parquet file"), size, columns)
    else:
        found = cut(find_images(paths), size)
    parts = [{"part": number, **part} for number, part in enumerate(found)]
    if not parts:
        raise click.ClickException(f"no rows in {', '.join(paths)}")
    network = load_model(options["weights"], options["model"], options["source"], "cpu", "float32", "auto")
    if not network.num_classes:
        raise click.ClickException(f"{options['weights']} has no classifier (num_classes=0)")
    hashes = {"weights": fingerprint(network), "images or part": hashlib.sha256(repr(parts).encode()).hexdigest()}
    with claimed(out, {**options, "columns": list(columns or ()), **hashes}):
        missing = [part for part in parts if not part_file(out, part["part"]).exists()]
        if len(missing) < len(parts):
            click.echo(f"{len(parts) - len(missing)} of {len(parts)} parts are there already", err=True)
        try:
            if missing:
                classify(missing, network, out, actors, address, options)
        except KeyboardInterrupt:
            click.echo(f"stopped; {out} holds the parts that are done: go on with the same command", err=True)
            raise
        failed = sum(count_failures(part_file(out, part["part"])) for part in parts)
        finish(failed, sum(part["images"] for part in parts), out)


if __name__ == "__main__":
    main()
