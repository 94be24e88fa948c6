"""The command line: `mbv3fast --help`."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from mbv3fast._version import __version__
from mbv3fast.cli import bench, build, classify, demo, doctor, embed, export, kernels, plan, stages, tiles


class Commands(click.Group):
    """A group whose commands clean up when terminated, and say a full disk or a missing permission in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _terminable():
                return super().invoke(ctx)
        except BrokenPipeError:
            raise  # click ends quietly when the reader of a pipe has gone
        except OSError as error:
            raise click.ClickException(f"{error.filename or 'output'}: {error.strerror or error}") from error


@contextmanager
def _terminable() -> Iterator[None]:
    """Within, SIGTERM ends the process as SystemExit does, through every `finally`."""
    if threading.current_thread() is not threading.main_thread():  # only there can signals be handled
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Start with `mbv3fast demo`, then `mbv3fast classify photo.jpg`. Every command has its own --help.",
)
@click.version_option(__version__, package_name="mbv3fast")
def main() -> None:
    """MobileNetV3, fast: classify and embed images, see what runs where and why."""


for command in (
    demo.demo,
    classify.classify,
    embed.embed,
    export.export,
    plan.plan,
    kernels.kernels,
    tiles.tiles,
    stages.stages,
    bench.bench,
    build.build,
    doctor.doctor,
):
    main.add_command(command)
