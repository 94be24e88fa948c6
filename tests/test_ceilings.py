"""What a device can do: the vendor's figures where they are known, else what is measured."""

from __future__ import annotations

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from mbv3fast import ceilings
from mbv3fast.ceilings import chip_of
from mbv3fast.gpus import GPUS

CPU = torch.device("cpu")


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, sms: int) -> None:
    """As if this were a GPU's name and number of multiprocessors."""
    chip = SimpleNamespace(name=name, multi_processor_count=sms)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: chip)


def test_a_known_gpu_has_its_vendors_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "NVIDIA H100 80GB HBM3", 132)
    assert chip_of(torch.device("cuda", 0)) == (GPUS["h100"], False)


def test_a_namesake_with_other_multiprocessors_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_measured", lambda _: GPUS["l4"])
    stand_in(monkeypatch, "Orin", 8)
    assert chip_of(torch.device("cuda", 0)) == (GPUS["l4"], True)
    stand_in(monkeypatch, "Orin", 16)
    assert chip_of(torch.device("cuda", 0)) == (GPUS["orin"], False)


def test_on_a_gpu_copies_are_timed_many_in_a_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """One short copy between events would be as long as its launch."""
    seen = []
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(ceilings, "replayed", lambda run, calls: (run, calls))
    monkeypatch.setattr(
        ceilings, "device_seconds", lambda graph, _, calls: seen.append((graph[1], calls)) or [0.5, 0.25]
    )
    assert ceilings._fastest(lambda: None, torch.device("cuda", 0), calls=20) == 0.25
    assert seen == [(20, 20)]
    asked = []
    monkeypatch.setattr(ceilings, "_fastest", lambda _, __, calls: asked.append(calls) or 1.0)
    ceilings._bandwidth(CPU, 2**20)
    assert asked == [20]


def test_a_cpu_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_LARGE", 2**24)
    ceilings._measured.cache_clear()
    chip, measured = chip_of(CPU)
    assert measured
    assert chip.sms == torch.get_num_threads()
    rates = (chip.memory_bandwidth, chip.l2_bandwidth, chip.fp32_flops, *chip.tensor_flops.values())
    assert all(1e8 < rate < math.inf for rate in rates)
    assert chip.l2_bandwidth >= chip.memory_bandwidth
    assert chip.half_flops == chip.fp32_flops, "it computes in float32"
    assert set(chip.tensor_flops) == {"float16", "bfloat16", "tf32"}
    assert chip_of(CPU)[0] is chip
    ceilings._measured.cache_clear()


def test_rates_are_work_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ceilings, "_fastest", lambda run, *_, **__: (run(), 0.5)[1])
    assert ceilings._bandwidth(CPU, 2**20) == 2 * 2**20 / 0.5, "read and written"
    assert ceilings._product_flops(CPU, "float32") == 2 * 1024**3 / 0.5


def test_the_switch_for_tf32_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(ceilings, "_fastest", lambda *_: seen.append(torch.get_float32_matmul_precision()) or 1.0)
    before = torch.get_float32_matmul_precision()
    for dtype in ("float32", "tf32"):
        ceilings._product_flops(CPU, dtype)
    assert seen == ["highest", "high"]
    assert torch.get_float32_matmul_precision() == before
