"""Image files: finding them, and decoding them in worker processes."""

from __future__ import annotations

import ctypes
import glob
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mbv3fast.preprocess import Preprocess

UNREADABLE = 3  # exit code
_PR_SET_PDEATHSIG = 1  # of linux/prctl.h
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}
)


def find_images(arguments: Sequence[str], suffixes: Collection[str] = SUFFIXES, what: str = "image") -> list[str]:
    """Files as they are, folders searched for suffixes, globs expanded; sorted within each, no file twice.

    Raises click.BadParameter for an argument that names nothing.
    """
    found: dict[str, str] = {}
    for argument in arguments:
        if os.path.isdir(argument):
            paths = sorted(_search(argument, suffixes))
        elif os.path.exists(argument):
            paths = [argument]
        else:
            paths = sorted(p for p in glob.glob(argument, recursive=True) if os.path.isfile(p))
        if not paths:
            raise click.BadParameter(f"{argument}: no such {what}, and no folder or pattern with {what}s")
        for path in paths:
            found.setdefault(os.path.abspath(path), path)
    return list(found.values())


def _search(folder: str, suffixes: Collection[str]) -> Iterator[str]:
    """Everything below `folder` with one of the suffixes; and what can't be opened, so that it is reported too."""
    closed: list[str] = []
    for place, _, names in os.walk(folder, onerror=lambda error: closed.append(str(error.filename))):
        yield from (str(Path(place, name)) for name in names if Path(name).suffix.lower() in suffixes)
    yield from closed


# Path, pixels, reason. NumPy's arrays travel through the workers' pipes, where tensors would need shared memory, of
# which containers have little.
Item = tuple[str, np.ndarray | None, str]


@dataclass(frozen=True)
class Batch:
    """A job's next images: those that could be read, in order, and those that could not."""

    paths: list[str]
    pixels: Tensor | None
    failures: list[tuple[str, str]]


class ImageFiles(Dataset[Item]):
    """(path, preprocessed pixels or None, reason) of each file; an unreadable one never stops a job."""

    def __init__(self, paths: Sequence[str], preprocess: Preprocess) -> None:
        self.paths = list(paths)
        self.preprocess = preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Item:
        path = self.paths[index]
        return path, *read_file(path, self.preprocess)


def read_file(path: str, preprocess: Callable[[Image.Image], Tensor]) -> tuple[np.ndarray | None, str]:
    """`preprocess` of the image at `path`, turned upright, and ""; or None and the reason."""
    if os.path.isdir(path):
        return None, "a folder that can't be opened"
    if not os.path.isfile(path):
        return None, "no regular file (any more)"
    return _read(path, preprocess)


def read_bytes(content: Any, name: str, preprocess: Callable[[Image.Image], Tensor]) -> tuple[np.ndarray | None, str]:
    """The same of an encoded image; errors call it `name`."""
    if not isinstance(content, bytes):
        return None, f"{type(content).__name__}, not bytes"
    return _read(_Encoded(content, name), preprocess)


class _Encoded(io.BytesIO):
    """Bytes that Pillow's errors call by a name, instead of by their address."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name

    def __repr__(self) -> str:
        return repr(self.name)


def _read(source: str | BinaryIO, preprocess: Callable[[Image.Image], Tensor]) -> tuple[np.ndarray | None, str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # twice its size is an error
            with Image.open(source) as image:
                return preprocess(ImageOps.exif_transpose(image)).numpy(), ""
    except Exception as error:  # whatever a decoder raises on bytes from anywhere
        return None, f"{type(error).__name__}: {error}"


def batches(
    paths: Sequence[str], preprocess: Preprocess, batch_size: int, workers: int, skip: int = 0
) -> Iterator[Batch]:
    """Decode `paths` in batches of `batch_size` files, leaving out the first `skip` batches.

    Which files make a batch depends on nothing but the list, so that a resumed job computes the same bits.
    """
    indices = list(range(len(paths)))
    groups = [indices[start : start + batch_size] for start in range(0, len(paths), batch_size)][skip:]
    loader = DataLoader(
        ImageFiles(paths, preprocess),
        batch_sampler=groups,
        num_workers=min(workers, len(groups)),
        collate_fn=list,
        worker_init_fn=_follow_parent,
    )
    for items in _surviving(loader):
        readable = [(path, torch.from_numpy(pixels)) for path, pixels, _ in items if pixels is not None]
        yield Batch(
            paths=[path for path, _ in readable],
            pixels=torch.stack([pixels for _, pixels in readable]) if readable else None,
            failures=[(path, reason) for path, pixels, reason in items if pixels is None],
        )


def _follow_parent(_: int) -> None:
    """What is sent to the whole group of processes is for the parent, which then ends its workers; they end with it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":  # elsewhere they inherit nothing that the next run would need, such as a lock
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _surviving(loader: Iterable[list[Item]]) -> Iterator[list[Item]]:
    """The loader's batches; a worker that was killed is an error in one line."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise click.ClickException("a decoding worker was killed (out of memory?); use fewer --workers") from error


def report(failures: Sequence[tuple[str, str]]) -> None:
    """Name the images that could not be read, on stderr."""
    for path, reason in failures:
        click.echo(f"skipped {click.format_filename(path)}: {reason}", err=True)


def finish(failed: int, total: int, out: Path | None = None) -> None:
    """Say what is in `out`; end with exit code 3 where images could not be read."""
    if out is not None:
        click.echo(f"{total - failed} images in {out}", err=True)
    if failed:
        click.echo(f"{failed} of {total} images could not be read", err=True)
        sys.exit(UNREADABLE)
