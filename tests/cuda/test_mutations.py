"""A kernel with a mistake is caught: by the comparison with its reference, or by the emulation's checks."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mbv3fast.cluster import Cut, cut_as
from mbv3fast.cuda import library
from mbv3fast.cuda.library import KernelError
from tests.cuda import network_mutants
from tests.cuda.checks import Block, check_depthwise_conv, check_inverted_residual, check_pointwise_conv
from tests.cuda.cut_networks import EXCITED, LAST, NARROW, PLAIN, WIDE, agrees, launched, made_of, plan_of
from tests.cuda.harness import Window
from tests.cuda.mutants import COMPARED, FAST, MUTANTS, Mutant
from tests.cuda.reduced import compiled, copy_sources, cut, mistake
from tests.cuda.test_squeeze_excite import Case
from tests.networks import photographs
from tests.numerics import assert_agrees

SMALL = {"tile_height": 4, "tile_width": 8, "step": 32, "splits": 1}


def projected(lib: ctypes.CDLL) -> None:
    block = Block(24, 72, 24, 3, 1, "relu", True)
    check_inverted_residual(lib, block, SMALL, (2, 7, 11))
    check_inverted_residual(lib, block._replace(residual=False), SMALL, (1, 7, 11), padding=(2, 0, 1, 1))


def sums(lib: ctypes.CDLL) -> None:
    check_inverted_residual(lib, Block(24, 72, 0, 5, 2, "relu"), SMALL, (2, 11, 21))


def not_expanded(lib: ctypes.CDLL) -> None:
    tile = {"tile_height": 8, "tile_width": 16, "step": 16, "splits": 1}
    check_inverted_residual(lib, Block(16, 16, 16, 3, 1, "relu", True), tile, (2, 9, 18))


def depthwise(lib: ctypes.CDLL) -> None:
    tile = {"tile_height": 4, "tile_width": 8, "groups": 4}
    check_depthwise_conv(lib, 40, Window(5, 2, (1, 2, 2, 1)), "relu", tile, (2, 9, 21))


def pointwise(lib: ctypes.CDLL) -> None:
    tile = {"tile_rows": 16, "tile_outputs": 48}
    check_pointwise_conv(lib, 792, 56, None, tile, (2, 3, 7), scaled=True, added=True)


def excite(lib: ctypes.CDLL) -> None:
    case = Case(lib, 40, 10, images=2)
    for cluster, two in ((2, False), (1, True)):
        case.agrees_in_float32(case.excite(cluster, tiles=3, two=two))


def squeeze_excite(lib: ctypes.CDLL) -> None:
    case = Case(lib, 40, 10, images=2, pixels=11)
    for cluster in (2, 1):  # one launch, and several
        for seed in (0, 1):
            case.agrees(case.squeeze_excite(cluster, two=cluster == 1, seed=seed)[0])


def whole_network(lib: ctypes.CDLL) -> None:
    """Rows, groups and channels, with squeeze-excite of all kinds, in bands and in steps."""
    model, x = made_of(PLAIN, EXCITED, WIDE, NARROW, LAST), photographs(2, 64)[:, :, :37, :50].half()
    for sharing, seed in (((1, 1, 1, 4, 4), 0), ((1, 1, 2, 2, 4), 1)):
        agrees(model, launched(lib, cut_as(plan_of(model), (37, 50), Cut(4, 8 * 1024, sharing)), x, seed=seed), x)


CHECKS: dict[str, Callable[[ctypes.CDLL], None]] = {
    "projected": projected,
    "sums": sums,
    "not expanded": not_expanded,
    "depthwise": depthwise,
    "pointwise": pointwise,
    "excite": excite,
    "squeeze-excite": squeeze_excite,
    "network": whole_network,
}


def built(monkeypatch: pytest.MonkeyPatch, instance: str, folder: Path, mutant: Mutant | None = None) -> ctypes.CDLL:
    """One instance of a kernel in place of the library."""
    sources = copy_sources(folder)
    if mutant is not None:
        mistake(sources, mutant.file, mutant.right, mutant.wrong)
    needed = (instance, "excite") if instance == "squeeze-excite" else (instance,)
    lib = compiled(*(cut(sources, name) for name in needed))
    monkeypatch.setattr(library, "_loaded", lambda: lib)
    return lib


def some_slow(names: list[str], fast: list[str]) -> list[object]:
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in names]


ALL = {**MUTANTS, **network_mutants.MUTANTS}


@pytest.mark.parametrize("name", some_slow(list(ALL), [*FAST, *network_mutants.FAST]))
@pytest.mark.usefixtures("emulation")
def test_a_mistake_is_caught(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = ALL[name]
    lib = built(monkeypatch, mutant.instance, tmp_path, mutant)
    with pytest.raises((AssertionError, KernelError), match=mutant.caught):
        CHECKS[mutant.instance](lib)


@pytest.mark.parametrize("instance", some_slow(list(CHECKS), ["projected"]))
@pytest.mark.usefixtures("emulation")
def test_without_a_mistake_nothing_is_caught(instance: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    CHECKS[instance](built(monkeypatch, instance, tmp_path))


def test_the_words_of_a_comparison() -> None:
    ones = torch.ones(3)
    with pytest.raises(AssertionError, match=COMPARED):
        assert_agrees(ones, ones * 2, ones.double() * 2)
