"""Arguments of the commands that a run's stages consist of."""

from __future__ import annotations

import argparse

from mbv3fast.cli.options import DTYPES


def add_network(parser: argparse.ArgumentParser) -> None:
    """A network and its input: variant, --dtype, --batch, --size."""
    parser.add_argument("variant", choices=("large", "small"))
    parser.add_argument("--dtype", choices=tuple(DTYPES), default="float16")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=224, help="height and width")
