"""Tables of timed tiles: their lookup, what comes before and after them, and the choice between CUDA's and Triton's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import mbv3fast
from mbv3fast.cost import plan_cost
from mbv3fast.cuda import tuned as tables
from mbv3fast.cuda.launch import Tile
from mbv3fast.cuda.tiles import HEURISTICS, options
from mbv3fast.cuda.tuned import FAMILY, GROWS, tuned
from mbv3fast.gpus import GPUS
from mbv3fast.launches import planned_launches
from mbv3fast.ops.target import Target
from mbv3fast.tuned import slug

CHIP = "NVIDIA H100 80GB HBM3"
HEADER = {"gpu": CHIP, "date": "2026-01-01", "torch": "2.13.0", "triton": "3.7.1", "driver": 13000}
BLOCK = {
    "images": 8,
    "out_height": 14,
    "out_width": 14,
    "inputs": 80,
    "channels": 184,
    "outputs": 80,
    "kernel": 3,
    "stride": 1,
    "activation": "hardswish",
    "expands": True,
    "others": True,
}
TILE: Tile = {"tile_height": 14, "tile_width": 7, "step": 32, "splits": 1}


@pytest.fixture(autouse=True)
def tiles(folder: Path) -> Path:
    """Where tables of tiles are looked for."""
    return folder.with_name("cuda-tables")


def write(folder: Path, config: Any, **sizes: Any) -> None:
    entry = {"sizes": {**BLOCK, **sizes}, "config": config, "us": 1.0, "heuristic_us": 2.0}
    (folder / f"{slug(CHIP)}.json").write_text(json.dumps({**HEADER, "ops": {"inverted_residual": [entry]}}))


def test_committed_tables_are_whole() -> None:
    for path in Path(tables.__file__).with_name("tables").glob("*.json"):
        assert slug(FAMILY.read(path)["gpu"]) == path.stem


def test_a_tile_is_found_for_its_sizes_and_near_batches(tiles: Path) -> None:
    write(tiles, TILE)
    assert HEURISTICS["inverted_residual"](**BLOCK) != TILE
    for images, found in {3: None, 4: TILE, 8: TILE, 16: TILE, 17: None}.items():
        assert tuned(CHIP, "inverted_residual", {**BLOCK, "images": images}) == found
    for other in ({"channels": 200}, {"activation": "relu"}, {"others": False}):
        assert tuned(CHIP, "inverted_residual", {**BLOCK, **other}) is None
    assert tuned("NVIDIA A100-SXM4-80GB", "inverted_residual", BLOCK) is None
    assert tuned(CHIP, "depthwise_conv", {"images": 1}) is None  # of which no table has any


def test_tiles_that_are_given_come_first_then_the_table_and_the_heuristic(tiles: Path) -> None:
    write(tiles, TILE)
    given = {**TILE, "tile_height": 4, "tile_width": 8, "step": 64}
    assert Target(chip=CHIP, tiles={"inverted_residual": given}).tile("inverted_residual", **BLOCK) == given
    assert Target(chip=CHIP, overrides={"inverted_residual": {}}).tile("inverted_residual", **BLOCK) == TILE
    assert Target().tile("inverted_residual", **BLOCK) == HEURISTICS["inverted_residual"](**BLOCK)


@pytest.mark.parametrize(
    "config", [{}, {**TILE, "step": 48}, {**TILE, "splits": 2}, [], {"tile_height": 4}, {**TILE, "step": 32.0}]
)
def test_what_is_not_compiled_is_refused(tiles: Path, config: Any) -> None:
    write(tiles, config, others=False)
    with pytest.raises(ValueError, match=r"inverted_residual\[0\].config is .*, which is not compiled for such sizes"):
        tuned(CHIP, "inverted_residual", BLOCK)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("images", size) for size in (0, -4, 1.5, "1", None, [1], True, float("nan"))),
        *(("channels", size) for size in ([960], 10**9, 10**18)),
        *(("activation", size) for size in ([], "swish", 1)),
        *(("expands", size) for size in (1, None, "true")),
    ],
)
def test_sizes_that_cannot_be_are_refused(tiles: Path, name: str, size: Any) -> None:
    write(tiles, TILE, **{name: size})
    with pytest.raises(ValueError, match=rf"inverted_residual\[0\].sizes.{name} is "):
        tuned(CHIP, "inverted_residual", BLOCK)


def test_two_entries_for_the_same_sizes_are_refused(tiles: Path) -> None:
    entry = {"sizes": BLOCK, "config": TILE, "us": 1.0, "heuristic_us": 2.0}
    path = tiles / f"{slug(CHIP)}.json"
    path.write_text(json.dumps({**HEADER, "ops": {"inverted_residual": [entry, {**entry, "us": 50.0}]}}))
    with pytest.raises(ValueError, match=r"ops\.inverted_residual has two entries for \{'images': 8"):
        tuned(CHIP, "inverted_residual", BLOCK)


def test_every_heuristics_choice_is_one_of_the_options() -> None:
    with torch.device("meta"):
        plans = [build().half().eval().plan("cuda") for build in (mbv3fast.large, mbv3fast.small)]
    asked: list[tuple[str, dict[str, Any], Tile]] = []

    class Asked(Target):
        def tile(self, op: str, **sizes: Any) -> Tile:
            tile = super().tile(op, **sizes)
            asked.append((op, sizes, tile))
            return tile

    for plan in plans:
        for images in (1, 128):
            list(planned_launches(plan, (images, 3, 224, 224), Asked(cuda=True)))
    assert {op for op, _, _ in asked} == GROWS.keys()
    for op, sizes, tile in asked:
        assert tile in options(op, FAMILY.complete(op, sizes))


@pytest.fixture
def small() -> Any:
    pytest.importorskip("triton")
    with torch.device("meta"):
        return mbv3fast.small().half().eval().plan("cuda")


def test_a_table_may_leave_a_block_to_triton(tiles: Path, small: Any) -> None:
    """Then expand and the rest are launches of their own."""

    def kernels(chip: str) -> list[str]:
        target = Target(chip=chip, cuda=True)
        launches = planned_launches(small, (1, 3, 224, 224), target)
        return [p.launch.kernel.__name__ for p in launches if p.step.name == "features.3.block.2"]

    write(tiles, {}, images=1, out_height=28, out_width=28, inputs=24, channels=88, outputs=24, activation="relu")
    assert kernels("") == ["inverted_residual"]
    assert kernels(CHIP) == ["pointwise_conv", "_depthwise_project_kernel"]


def test_without_triton_every_block_is_cudas(small: Any) -> None:
    launches = list(planned_launches(small, (1, 3, 224, 224), Target(cuda=True, triton=False)))
    kernels = [p.launch.kernel.__name__ for p in launches if p.step.name == "features.1.block.2"]
    assert kernels == ["inverted_residual", "excite", "pointwise_conv"]


def by_block(plan: Any, shape: tuple[int, ...], gpu: str, ends: list[str]) -> Iterator[float]:
    """Estimated seconds up to each of the steps that end a block."""
    steps = plan_cost(plan, shape, GPUS[gpu]).steps
    until = dict(zip([s.name for s in steps], accumulate(s.estimate_seconds or 0 for s in steps), strict=True))
    times = [0.0, *(until[name] for name in ends)]
    yield from (after - before for before, after in pairwise(times))


@pytest.mark.parametrize("gpu", GPUS)
@pytest.mark.parametrize("build", [mbv3fast.large, mbv3fast.small])
def test_until_it_is_measured_the_cost_model_has_nothing_against_the_choice(build: Callable[[], Any], gpu: str) -> None:
    """No block takes a tenth longer than by Triton's kernels, and together they take less."""
    pytest.importorskip("triton")
    with torch.device("meta"):
        model = build().half().eval()
    chosen, layers = model.plan("cuda"), model.plan("triton")
    ends = [step.name for step in chosen.steps]
    for images in (1, 8, 32, 128):
        ours, theirs = (list(by_block(plan, (images, 3, 224, 224), gpu, ends)) for plan in (chosen, layers))
        assert sum(ours) < sum(theirs)
        assert max(mine / others for mine, others in zip(ours, theirs, strict=True)) < 1.1
