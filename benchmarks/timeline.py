"""When each block of plan `network` is at which stage: a picture, and each stage's time beside the model's.

python -m benchmarks.timeline large --out timeline.png       # on a GPU; emulated, it draws products for clocks
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.machine import DEVICE
from mbv3fast import BackendError, large, small
from mbv3fast.cluster import stage_names
from mbv3fast.cluster.latency import CLOCK, work_of
from mbv3fast.cluster.run import ClusterNetwork

_WARM = 20  # calls before the one that is drawn
_TIMED = DEVICE == "cuda"
_UNIT, _OF_CLOCK = ("us", 1e6 / CLOCK) if _TIMED else ("products (emulated, no time)", 1.0)


def stamps_of(variant: str, size: int) -> tuple[Tensor, list[tuple[str, float]]]:
    """Stamps [blocks of a cluster, stages + 1] of an image, and each stage's name and predicted seconds."""
    model = (large if variant == "large" else small)(plan="network").half().eval().to(DEVICE)
    plan = model.plan("network")
    network = ClusterNetwork(plan)
    x = torch.randn(1, 3, size, size, device=DEVICE).half()
    with torch.inference_mode():
        for _ in range(_WARM if _TIMED else 0):
            network(x)
        stamps = network.timeline(x).cpu()
    tables = network.tables(x)
    works = work_of(tables.stages, tables.chunks, tables.cut.blocks)
    return stamps, [(name, work.busiest.seconds) for name, work in zip(stage_names(plan), works, strict=True)]


def clocks(stamps: Tensor) -> Tensor:
    """The same from when the first block began: clocks differ, but all blocks leave the last barrier together."""
    ended = stamps[:, -1:]
    since = stamps - ended
    return since - since.min()


def draw(stamps: Tensor, names: Sequence[str], path: Path) -> None:
    """A row for each block, a bar for each stage, in microseconds at the clock of the model; or in products."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    times = clocks(stamps).double() * _OF_CLOCK
    figure, axes = pyplot.subplots(figsize=(14, 1 + len(times) / 4))
    colours = [f"C{number}" for number in range(10)]
    for block, row in enumerate(times.tolist()):
        for number, (begin, end) in enumerate(itertools.pairwise(row)):
            axes.barh(block, end - begin, left=begin, color=colours[number % len(colours)], height=0.9)
    for number, name in enumerate(names):
        axes.text(times[:, number].median().item(), -1, name, rotation=60, fontsize=6, va="bottom")
    axes.set(xlabel=_UNIT, ylabel="block", ylim=(len(times) - 0.5, -1))
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variant", choices=("large", "small"))
    parser.add_argument("--size", type=int, default=224, help="height and width, from 32 on")
    parser.add_argument("--out", type=Path, default=Path("timeline.png"))
    parser.add_argument("--json", type=Path, help="the stamps, and what was predicted")
    chosen = parser.parse_args(arguments)
    if chosen.size < 32:
        parser.error(f"--size: got {chosen.size}, needs 32 or more")
    try:
        stamps, predicted = stamps_of(chosen.variant, chosen.size)
    except BackendError as error:
        parser.exit(1, f"{error}\n")
    spent = clocks(stamps).diff(dim=1).double().median(0).values
    print(f"{'stage':<22}{'predicted us':>14}{_UNIT.split()[0]:>12}")
    for (name, seconds), clock in zip(predicted, spent.tolist(), strict=True):
        print(f"{name:<22}{1e6 * seconds:>14.1f}{clock * _OF_CLOCK:>12.1f}")
    draw(stamps, [name for name, _ in predicted], chosen.out)
    if chosen.json:
        chosen.json.write_text(json.dumps({"stamps": stamps.tolist(), "predicted": predicted}), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
