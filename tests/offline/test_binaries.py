"""How many binaries a forward needs: a user waits for each at the first call that launches it."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any

import pytest
import torch

import mbv3fast
from tests.offline.compiling import Launch, binary
from tests.offline.launches import VARIANTS, Launches, bytes_launches, plan_launches, squeeze_excite_launches

BATCHES = (1, 2, 3, 16)
CONFIGURATION = ("BLOCK_", "TILE_", "UNROLL", "num_", "ONE_PART")


def test_batches_share_binaries() -> None:
    """One batch has 46 launches in the Large, 37 or 39 in the Small."""
    found = {}
    for variant in VARIANTS:
        launches = [launch for images in BATCHES for launch in plan_launches(variant, images).values()]
        found[variant] = len(launches), len({binary(launch) for launch in launches})
    # Batches 1 to 3 differ in a few blocks; at 16 a chip is full, and most have grown.
    assert found == {"large": (4 * 46, 87), "small": (3 * 37 + 39, 64)}


def test_batch_and_size_decide_nothing_but_configurations() -> None:
    """And which kernels compute an excite."""
    for variant in VARIANTS:
        few, many = (by_step(plan_launches(variant, *given)) for given in ((1,), (128, torch.half, 160)))
        assert few.keys() == many.keys()
        for step, launches in few.items():
            others = many[step]
            if launches.keys() == others.keys() or not any("_excite_" in name for name in (*launches, *others)):
                for name in launches:
                    assert binary(without_configuration(launches[name])) == binary(without_configuration(others[name]))


def by_step(launches: Launches) -> dict[str, Launches]:
    """The launches of each step by kernel."""
    found: dict[str, Launches] = {}
    for name, launch in launches.items():
        step, kernel = name.partition(": ")[2].split(" ")
        found.setdefault(step, {})[kernel] = launch
    return found


def without_configuration(launch: Launch) -> Launch:
    constants = {name: value for name, value in launch.constants.items() if not name.startswith(CONFIGURATION)}
    return launch._replace(constants=constants)


def test_no_binary_depends_on_a_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or Triton would make one for sizes that 16 divides, one for those it doesn't, and one for 1."""
    sizes: dict[Any, list[str]] = {}

    def record(kernel: Any, _: int, reads: tuple, writes: tuple, values: tuple[int, ...], **__: Any) -> None:
        first = len(reads) + len(writes)
        sizes[kernel] = kernel.arg_names[first : first + len(values)]

    names = [module.name for module in pkgutil.iter_modules(mbv3fast.kernels.__path__, "mbv3fast.kernels.")]
    launchers = [module for module in map(importlib.import_module, names) if hasattr(module, "launch")]
    for module in launchers:
        monkeypatch.setattr(module, "launch", record)
    plan_launches("large", 1)
    plan_launches("large", 16)
    bytes_launches(1)
    squeeze_excite_launches(1)
    assert len(sizes) == 10, "not every kernel was launched"
    for kernel, integers in sizes.items():
        assert integers == kernel.do_not_specialize, kernel.__name__
