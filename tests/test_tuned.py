"""Tables of timed configurations: their lookup, and what comes before and after them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from benchmarks.candidates import LIMITS
from mbv3fast.kernels import tuned as tables
from mbv3fast.kernels.configs import HEURISTICS, excite_project_blocks
from mbv3fast.kernels.tuned import FAMILY, GROWS, OPTIONAL, tuned
from mbv3fast.ops.target import Target, target_of
from mbv3fast.tuned import slug
from tests.tables import CHIP, CPU, META, PRODUCT, entry, product, write

pytestmark = pytest.mark.usefixtures("folder")


def test_committed_tables_are_whole() -> None:
    for path in Path(tables.__file__).with_name("tables").glob("*.json"):
        assert slug(FAMILY.read(path)["gpu"]) == path.stem


def test_exact_sizes_are_found(folder: Path) -> None:
    write(folder, {"pointwise_conv": [entry(), entry(product(BLOCK_K=32), inputs=64)]})
    assert tuned(CHIP, "pointwise_conv", PRODUCT) == product()
    assert tuned(CHIP, "pointwise_conv", {**PRODUCT, "inputs": 64}) == product(BLOCK_K=32)
    for other in ({"outputs": 41}, {"inputs": 33}, {"itemsize": 4}):
        assert tuned(CHIP, "pointwise_conv", {**PRODUCT, **other}) is None
    assert tuned(CHIP, "linear", PRODUCT) is None


@pytest.mark.parametrize(
    ("rows", "found"),
    [(0, None), (49, None), (50, 100), (141, 100), (142, 200), (200, 200), (400, 200), (401, None), (1500, 3000)],
)
def test_the_nearest_batch_within_a_factor_of_2_serves(folder: Path, rows: int, found: int | None) -> None:
    configs = {100: product(), 200: product(BLOCK_M=32), 3000: product(BLOCK_M=64)}
    write(folder, {"pointwise_conv": [entry(config, rows=timed) for timed, config in configs.items()]})
    assert tuned(CHIP, "pointwise_conv", {**PRODUCT, "rows": rows}) == (None if found is None else configs[found])


def test_of_two_as_near_the_smaller_serves(folder: Path) -> None:
    write(folder, {"pointwise_conv": [entry(product(BLOCK_M=32), rows=200), entry(rows=50)]})
    assert tuned(CHIP, "pointwise_conv", PRODUCT) == product()


def test_a_size_left_out_is_the_heuristics_default(folder: Path) -> None:
    sizes = {"images": 1, "out_height": 7, "out_width": 7, "channels": 64, "kernel": 3, "itemsize": 2}
    config = {**HEURISTICS["depthwise_conv"](**sizes), "num_warps": 2}
    one = {**entry(config), "sizes": sizes}
    write(folder, {"depthwise_conv": [one, {**one, "sizes": {**sizes, "squeeze": 16, "kernel": 5}}]})
    assert tuned(CHIP, "depthwise_conv", sizes) == tuned(CHIP, "depthwise_conv", {**sizes, "squeeze": 0}) == config
    assert tuned(CHIP, "depthwise_conv", {**sizes, "squeeze": 16}) is None
    assert tuned(CHIP, "depthwise_conv", {**sizes, "squeeze": 16, "kernel": 5}) == config
    assert tuned(CHIP, "depthwise_conv", {**sizes, "kernel": 5}) is None


def test_every_op_has_a_size_that_grows() -> None:
    assert GROWS.keys() == HEURISTICS.keys() == LIMITS.keys()


def test_another_chip_has_no_table(folder: Path) -> None:
    write(folder, {"pointwise_conv": [entry()]})
    assert tuned("", "pointwise_conv", PRODUCT) is None
    assert tuned("NVIDIA A100-SXM4-80GB", "pointwise_conv", PRODUCT) is None


SIZES: dict[str, dict[str, int]] = {
    "depthwise_project": {"out_height": 7, "out_width": 7, "channels": 64, "outputs": 32, "kernel": 3},
    "excite_images": {"channels": 960, "squeezed": 240},
    "excite_project": {"pixels": 49, "inputs": 960, "outputs": 160, "squeezed": 240, "parts": 8},
}


@pytest.mark.parametrize("op", OPTIONAL)
def test_other_kernels_may_be_the_fastest(op: str, folder: Path) -> None:
    sizes = {"images": 1, "itemsize": 2, **SIZES[op]}
    write(folder, {op: [{**entry({}), "sizes": sizes}]})
    assert tuned(CHIP, op, sizes) == {}
    assert Target(chip=CHIP).config(op, **sizes) == {}


def test_a_table_may_say_what_the_heuristic_counts_as_slower(folder: Path) -> None:
    sizes = FAMILY.complete("excite_project", {"images": 1, "itemsize": 2, **SIZES["excite_project"]})
    assert HEURISTICS["excite_project"](**sizes) == {}
    blocks = dict(excite_project_blocks(**sizes))
    write(folder, {"excite_project": [{**entry(blocks), "sizes": sizes}]})
    assert tuned(CHIP, "excite_project", sizes) == blocks


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "Expecting": lambda folder: write(folder, {}).write_text("{"),
    "the table is": lambda folder: write(folder, {}).write_text("[]"),
    "author": lambda folder: write(folder, {}, author="me"),
    "driver is": lambda folder: write(folder, {}, driver="570"),
    "nvidia-a100.json": lambda folder: write(folder, {}, gpu="NVIDIA A100"),
    "ops has": lambda folder: write(folder, {"convolution": []}),
    "needs some of": lambda folder: write(folder, ["linear"]),
    "not a mapping": lambda folder: write(folder, {"linear": [{**entry(), "sizes": [1]}]}),
    "needs a list": lambda folder: write(folder, {"linear": {}}),
    "note": lambda folder: write(folder, {"pointwise_conv": [{**entry(), "note": ""}]}),
    r"\[1\].sizes.*tiles": lambda folder: write(folder, {"pointwise_conv": [entry(), entry(tiles=49)]}),
    "sizes.rows": lambda folder: write(folder, {"pointwise_conv": [entry(rows=0)]}),
    "config.*UNROLL": lambda folder: write(folder, {"pointwise_conv": [entry({**product(), "UNROLL": 2})]}),
    "config.*num_stages": lambda folder: write(folder, {"pointwise_conv": [entry({})]}),
    "power of 2": lambda folder: write(folder, {"pointwise_conv": [entry(product(BLOCK_M=48))]}),
    "config.BLOCK_N": lambda folder: write(folder, {"pointwise_conv": [entry({**product(), "BLOCK_N": True})]}),
    "microseconds": lambda folder: write(folder, {"pointwise_conv": [{**entry(), "us": float("nan")}]}),
    "needs microseconds": lambda folder: write(folder, {"pointwise_conv": [{**entry(), "us": float("inf")}]}),
    "us is True": lambda folder: write(folder, {"pointwise_conv": [{**entry(), "us": True}]}),
    "driver is True": lambda folder: write(folder, {}, driver=True),
    "two entries": lambda folder: write(folder, {"pointwise_conv": [entry(), entry()]}),
}


@pytest.mark.parametrize("complaint", DAMAGE)
def test_a_damaged_table_is_named(folder: Path, complaint: str) -> None:
    DAMAGE[complaint](folder)
    with pytest.raises(ValueError, match=rf"(?s)nvidia-h100-80gb-hbm3\.json: .*{complaint}"):
        tuned(CHIP, "pointwise_conv", PRODUCT)


def test_overrides_come_first_then_the_interpreter_the_table_and_the_heuristic(folder: Path) -> None:
    write(folder, {"pointwise_conv": [entry()]})
    chosen = product(num_stages=4)
    heuristic = HEURISTICS["pointwise_conv"](**PRODUCT)
    assert Target(chip=CHIP, overrides={"pointwise_conv": chosen}).config("pointwise_conv", **PRODUCT) == chosen
    assert Target(interpreted=True, overrides={"pointwise_conv": chosen}).config("pointwise_conv", **PRODUCT) == chosen
    assert "num_warps" not in Target(interpreted=True, chip=CHIP).config("pointwise_conv", **PRODUCT)
    assert Target(chip=CHIP, overrides={"linear": chosen}).config("pointwise_conv", **PRODUCT) == product()
    assert Target().config("pointwise_conv", **PRODUCT) == heuristic != product()
    assert isinstance(Target().overrides, MappingProxyType)


def test_a_gpus_target_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbv3fast.ops.target._properties", lambda _: (CHIP, 114, 90))
    target = target_of(torch.device("cuda", 0), pdl=True)
    assert (target.chip, target.sms, target.pdl, target.interpreted) == (CHIP, 114, True, False)
    assert target_of(CPU).chip == target_of(META).chip == ""
