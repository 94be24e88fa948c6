"""The whole network in one launch, emulated: every kind of stage, whole networks, and what is counted of them."""

from __future__ import annotations

from collections.abc import Callable
from ctypes import CDLL

import pytest
import torch
from torch import nn

import mbv3fast
from mbv3fast.cluster import Cut, UncutError, cut, cut_as
from mbv3fast.cluster.latency import predicted_seconds
from mbv3fast.cluster.memory import SHARED_BYTES
from tests.cuda.cut_networks import (
    EXCITED,
    HALF,
    LAST,
    NARROW,
    PLAIN,
    SQUEEZED,
    WIDE,
    agrees,
    assert_counted,
    launched,
    made_of,
    plan_of,
)
from tests.networks import calibrated_large, photographs, randomise, short_small, trained_small


@pytest.fixture(autouse=True)
def _emulated(emulation: CDLL) -> None:
    assert emulation.mbv3fast_emulated()


STAGES = {  # blocks, and how many of them are cut into rows, and how many into rows by groups
    "rows without expansion or squeeze-excite": ((PLAIN,), 1, 0),
    "rows of the first block, with squeeze-excite": ((SQUEEZED,), 1, 0),
    "rows whose blocks each compute squeeze-excite alone": ((PLAIN, EXCITED), 2, 0),
    "rows whose blocks share squeeze-excite": ((PLAIN, EXCITED, WIDE), 3, 0),
    "rows at stride 2": ((PLAIN, EXCITED, NARROW), 3, 0),
    "channels without squeeze-excite": ((PLAIN, EXCITED, NARROW), 2, 0),
    "channels with it": ((PLAIN, EXCITED, WIDE), 2, 0),
    "channels behind channels": ((PLAIN, EXCITED, NARROW, LAST), 2, 0),
    "groups": ((PLAIN, EXCITED, WIDE), 2, 1),
    "groups at stride 2": ((PLAIN, EXCITED), 1, 1),
    "groups behind groups": ((PLAIN, EXCITED, WIDE, NARROW), 1, 3),
    "channels behind groups": ((PLAIN, EXCITED, WIDE, NARROW, LAST), 2, 2),
}
CUTS = [(name, blocks, 1) for name, (_, _, groups) in STAGES.items() for blocks in (1, 4) if groups == 0]
CUTS += [(name, *cut) for name, (_, _, groups) in STAGES.items() for cut in ((4, 2), (8, 4), (8, 2)) if groups > 0]


@pytest.mark.parametrize(("name", "blocks", "sharing"), CUTS)
def test_every_kind_of_stage(emulation: CDLL, name: str, blocks: int, sharing: int) -> None:
    """At odd sizes, in the same bits by any order of threads, and with as much work as is counted."""
    configs, in_rows, in_groups = STAGES[name]
    model, x = made_of(*configs), photographs(2, 64)[:, :, :37, :50].half()
    how = (1,) * in_rows + (sharing,) * in_groups + (blocks,) * (len(configs) - in_rows - in_groups)
    tables = cut_as(plan_of(model), (37, 50), Cut(blocks, 16 * 1024, how))
    out = launched(emulation, tables, x)
    agrees(model, out, x)
    assert torch.equal(out, launched(emulation, tables, x, seed=1)), "the order of threads shows"
    assert torch.equal(out[:1], launched(emulation, tables, x[:1]))
    assert_counted(emulation, tables)


@pytest.mark.parametrize("slot", [6, 8, 32])
def test_chunks_of_any_size(emulation: CDLL, slot: int) -> None:
    model, x = made_of(PLAIN, EXCITED, WIDE, NARROW, LAST, hidden=200), photographs(1, 64).half()
    agrees(model, launched(emulation, cut_as(plan_of(model), (64, 64), Cut(2, slot * 1024, (1, 1, 1, 2, 2))), x), x)


@pytest.mark.parametrize("dtype", [HALF, torch.bfloat16])
def test_dtypes(emulation: CDLL, dtype: torch.dtype) -> None:
    model, x = short_small(), photographs(2, 64).to(dtype)
    agrees(model, launched(emulation, cut(plan_of(model, dtype), (64, 64), 4), x, dtype), x)


def test_a_batch_by_one_cluster_and_by_several(emulation: CDLL) -> None:
    """Each image has the same bits, whoever computes it."""
    model, x = short_small(), photographs(3, 64).half()
    tables = cut(plan_of(model), (64, 64), 4)
    one = launched(emulation, tables, x)
    agrees(model, one, x)
    for clusters, seed in ((2, 0), (3, 1)):
        assert torch.equal(launched(emulation, tables, x, clusters=clusters, seed=seed), one)
    assert torch.equal(launched(emulation, tables, x[1:2]), one[1:2])


@pytest.mark.parametrize("channels", [1, 4])
def test_layouts_and_channels(emulation: CDLL, channels: int) -> None:
    torch.manual_seed(0)
    model = mbv3fast.small(in_chans=channels, width_mult=0.5, num_classes=5)
    randomise(model)
    x = torch.randn(2, channels, 40, 33).half()
    tables = cut(plan_of(model), (40, 33), 2)
    out = launched(emulation, tables, x)
    agrees(model, out, x)
    assert torch.equal(launched(emulation, tables, x.contiguous(memory_format=torch.channels_last)), out)
    assert torch.equal(launched(emulation, tables, torch.cat([x, x], 3)[:, :, :, :33]), out)


NETWORKS: dict[str, Callable[[], nn.Module]] = {"small": trained_small, "large": calibrated_large}


@pytest.mark.parametrize(
    ("name", "size", "blocks", "in_rows"),
    [
        ("small", 64, 16, None),
        ("small", 64, 8, 9),
        ("large", 64, 16, None),
        ("small", 224, 16, None),
        ("large", 224, 16, None),
        *(pytest.param(name, 224, 8, None, marks=pytest.mark.slow) for name in ("small", "large")),
        *(pytest.param("small", 224, 16, in_rows, marks=pytest.mark.slow) for in_rows in (11, 10, 7, 3)),
        *(pytest.param("large", size, 16, None, marks=pytest.mark.slow) for size in (160, 256)),
    ],
)
def test_networks(emulation: CDLL, name: str, size: int, blocks: int, in_rows: int | None) -> None:
    """And what is counted of them, which the emulation counts too."""
    model, x, square = NETWORKS[name](), photographs(1, size).half(), (size, size)
    plan = plan_of(model)
    tables = (
        cut(plan, square, blocks)
        if in_rows is None
        else cut_as(plan, square, Cut(blocks, 24 * 1024, (1,) * in_rows + (blocks,) * (11 - in_rows)))
    )
    out = launched(emulation, tables, x, seed=blocks)
    assert_counted(emulation, tables)
    agrees(model, out, x)


@pytest.mark.parametrize(
    ("name", "blocks", "fits", "lacks"), [("large", 16, 272, 288), ("small", 16, 384, 416), ("large", 8, 256, 272)]
)
def test_sizes_that_a_cluster_holds(name: str, blocks: int, fits: int, lacks: int) -> None:
    """As docs/network.md says them."""
    plan = plan_of(NETWORKS[name]())
    tables = cut(plan, (fits, fits), blocks)
    assert max(tables.taken) <= SHARED_BYTES == 227 * 1024
    assert 0 < predicted_seconds(tables.stages, tables.chunks, blocks) < 1e-3
    with pytest.raises(UncutError, match=f"images of {lacks}x{lacks} don't fit a cluster of {blocks}"):
        cut(plan, (lacks, lacks), blocks)


def test_groups_that_a_cluster_has_not() -> None:
    for sharing in ((2, 4), (1, 4, 2), (1, 3), (1, 32)):
        with pytest.raises(ValueError, match=r"^sharing: got \("):
            Cut(16, 16 * 1024, sharing)
