"""Running the command line within the tests' process."""

from __future__ import annotations

import csv
from pathlib import Path

from click.testing import CliRunner, Result

from mbv3fast.cli import main


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments])


def classify(weights: Path, *arguments: object) -> Result:
    return run("classify", *arguments, "--weights", weights, "--workers", 0, "--device", "cpu")


def read_csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
