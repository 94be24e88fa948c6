"""The table of GPUs: who is in it, and that no namesake is."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from pathlib import Path

import pytest

from mbv3fast.gpus import GPUS, Gpu, find_gpu

NAMES = {
    "h100": "NVIDIA H100 80GB HBM3",
    "h200": "NVIDIA H200",
    "a100": "NVIDIA A100-SXM4-80GB",
    "l4": "NVIDIA L4",
    "rtx4090": "NVIDIA GeForce RTX 4090",
    "orin": "Orin",
}


@pytest.mark.parametrize("short", GPUS)
def test_found_by_its_short_name_and_by_what_pytorch_says(short: str) -> None:
    assert GPUS[short].name == NAMES[short]
    for name in (short, short.upper(), NAMES[short], f"  {NAMES[short].lower()} "):
        assert find_gpu(name) is GPUS[short]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "NVIDIA",
        "NVIDIA H100 PCIe",
        "NVIDIA H100 NVL",
        "NVIDIA GH200 480GB",
        "NVIDIA H200 NVL",
        "NVIDIA L40S",
        "NVIDIA L40",
        "NVIDIA A100-PCIE-40GB",
        "NVIDIA A100-SXM4-40GB",
        "NVIDIA A100 80GB PCIe",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 4080",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "h10",
    ],
)
def test_namesakes_are_other_gpus(name: str) -> None:
    assert find_gpu(name) is None


@pytest.mark.parametrize("gpu", GPUS.values(), ids=lambda gpu: gpu.name)
def test_rates_are_dense_and_in_base_units(gpu: Gpu) -> None:
    """By what the chips have in common: rates of their multiprocessors at clocks of 1 to 2.6 GHz."""
    cores = {(8, 0): 64, (8, 7): 128, (8, 9): 128, (9, 0): 128}[gpu.capability]
    clock = gpu.fp32_flops / (2 * cores * gpu.sms)
    assert 1.2e9 < clock < 2.6e9
    # Multiply-adds of half precision a clock, sums in float32: half as many on GeForce as on its chip's other cards.
    products = {"NVIDIA GeForce RTX 4090": 256, (8, 0): 1024, (8, 7): 1024, (8, 9): 512, (9, 0): 2048}
    expected = products.get(gpu.name, products[gpu.capability])
    assert gpu.tensor_flops["float16"] / (2 * gpu.sms * clock) == pytest.approx(expected, rel=0.1)
    assert gpu.tensor_flops["bfloat16"] == gpu.tensor_flops["float16"]
    assert gpu.tensor_flops["tf32"] == pytest.approx(gpu.tensor_flops["float16"] / 2, rel=0.02)
    assert gpu.half_flops / gpu.fp32_flops == pytest.approx(
        {(8, 0): 4, (8, 7): 2, (8, 9): 1, (9, 0): 2}[gpu.capability]
    )
    assert gpu.memory_bandwidth < gpu.l2_bandwidth <= gpu.sms * 64 * 2.6e9
    assert gpu.l2_bytes % 2**20 == 0


@pytest.mark.parametrize("short", GPUS)
def test_the_document_has_the_same_figures(short: str) -> None:
    document = (Path(__file__).parent.parent / "docs" / "cost-model.md").read_text(encoding="utf-8")
    (row,) = (line.split("|")[2:-2] for line in document.splitlines() if line.startswith(f"| `{short}`"))
    gpu = GPUS[short]
    figures = [float(cell.split()[0]) for cell in row]
    tera = (
        gpu.memory_bandwidth,
        gpu.l2_bandwidth,
        gpu.tensor_flops["float16"],
        gpu.tensor_flops["tf32"],
        gpu.fp32_flops,
        gpu.half_flops,
    )
    memory, l2, *flops = (value / 1e12 for value in tera)
    assert figures == [gpu.sms, round(memory, 2), gpu.l2_bytes >> 20, round(l2, 1), *map(pytest.approx, flops)]


CHIP = replace(GPUS["h100"], memory_bandwidth=1.0, l2_bandwidth=10.0, l2_bytes=100)


@pytest.mark.parametrize(
    ("read", "written", "fresh", "seconds"),
    [
        (60, 30, 0, 9),  # all in the cache
        (60, 30, 60, 60),  # nothing of it, but what is written stays
        (300, 30, 0, 200),
        (300, 30, 300, 300),
        (300, 350, 0, 200 + 250),
        (300, 350, 300, 300 + 250),
        (300, 0, 120, 120 + 80),
    ],
)
def test_a_launch_is_spared_what_the_cache_holds_before_and_after_it(
    read: int, written: int, fresh: int, seconds: float
) -> None:
    assert CHIP.memory_seconds(read, written, fresh=fresh) == pytest.approx(seconds)


def test_memory_seconds_do_not_jump_where_the_cache_ends() -> None:
    for fresh in (0, 1):
        times = [CHIP.memory_seconds(size, size // 2, fresh=fresh * size) for size in range(80, 400)]
        steps = [after - before for before, after in itertools.pairwise(times)]
        assert min(steps) >= 0
        assert max(steps) < 2.2, "as long as two bytes take"


def test_launches_together_take_no_longer_than_one_by_one() -> None:
    """Or what is counted of a library's would be no bound, which knows only their sum."""
    dice = random.Random(0)
    for _ in range(500):
        each = [(dice.randrange(400), dice.randrange(400), dice.random()) for _ in range(dice.randrange(1, 6))]
        read, written, fresh = (sum(n) for n in zip(*((r, w, int(r * part)) for r, w, part in each), strict=True))
        together = CHIP.memory_seconds(read, written, fresh=fresh, launches=len(each))
        assert together <= sum(CHIP.memory_seconds(r, w, fresh=int(r * part)) for r, w, part in each) + 1e-9
