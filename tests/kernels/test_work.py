"""The counts of `kernels.work` against what the interpreter is seen to do, at sizes and blocks that fit nowhere."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

import mbv3fast.kernels
from mbv3fast.launching import watch_launches
from tests.kernels import work_cases
from tests.kernels.harness import interpreter

work = pytest.importorskip("mbv3fast.kernels.work").work
MODULES = [module.name for module in pkgutil.iter_modules(mbv3fast.kernels.__path__, "mbv3fast.kernels.")]


@dataclass
class Seen:
    """What the interpreter did in one launch; `products` are float32 products of two blocks, element by element."""

    issued: int = 0
    dots: int = 0
    products: int = 0
    trips: list[int] = field(default_factory=list)  # of each program
    first: int = 0  # reads of the first argument's elements
    pixels: int = 0  # of these, each program's distinct ones once
    _addresses: range = range(0)  # of the first argument
    _read: set[int] = field(default_factory=set)
    _waiting: bool = False  # for something that was loaded
    _depth: int = 0  # of loops

    def load(self, addresses: np.ndarray, mask: np.ndarray, size: int) -> None:
        named = np.broadcast_to(addresses, np.broadcast_shapes(addresses.shape, mask.shape))[mask.astype(bool)]
        self.issued += named.size * size
        read = [address for address in named.tolist() if address in self._addresses]
        self.first += len(read)
        self._read.update(read)
        self._waiting = True

    def wait(self) -> None:
        self.trips[-1] += self._waiting
        self._waiting = False

    def wait_outside_loops(self) -> None:
        if not self._depth:
            self.wait()

    def rounds(self, values: Iterable[int], unroll: int = 1) -> Iterator[int]:
        """`values` of a loop, which waits where it goes round, and at its end."""
        self._depth += 1
        for turn, value in enumerate(values):
            if turn and turn % unroll == 0:
                self.wait()
            yield value
        self._depth -= 1
        self.wait()

    def begin(self) -> None:
        """The next program."""
        self.end()
        self.trips.append(0)

    def end(self) -> None:
        if self.trips:
            self.wait()
        self.pixels += len(self._read)
        self._read.clear()


def before(owner: Any, name: str, look: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Call `look` with the arguments of owner.name, which then does its work."""
    does = getattr(owner, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        look(*args, **kwargs)
        return does(*args, **kwargs)

    monkeypatch.setattr(owner, name, watched)


def watch_memory(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads, stores, products and dots, at the interpreter's own builder; and where the first argument lies."""
    builder, executor = type(interpreter.interpreter_builder), interpreter.GridExecutor

    def load(_: Any, addresses: Any, mask: Any, *__: Any) -> None:
        seen.load(addresses.data, mask.data, addresses.get_element_ty().primitive_bitwidth // 8)

    def store(_: Any, addresses: Any, __: Any, mask: Any, *___: Any) -> None:
        lanes = np.broadcast_to(mask.data, addresses.data.shape)
        seen.issued += int(np.count_nonzero(lanes)) * addresses.get_element_ty().primitive_bitwidth // 8

    def dot(_: Any, a: Any, b: Any, *__: Any) -> None:
        seen.dots += a.data.shape[0] * a.data.shape[1] * b.data.shape[1]

    def multiply(_: Any, a: Any, b: Any) -> None:
        assert a.data.shape == b.data.shape
        seen.products += a.data.size * (a.data.ndim > 1)

    looks = {"create_masked_load": load, "create_masked_store": store, "create_dot": dot, "create_fmul": multiply}
    for name, look in looks.items():
        before(builder, name, look, monkeypatch)
    before(builder, "set_grid_idx", lambda *_: seen.begin(), monkeypatch)
    places = executor._init_args_hst

    def arguments(self: Any, args: Any, kwargs: Any) -> Any:
        there = places(self, args, kwargs)
        x = there[0][0]
        extent = 1 + sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
        seen._addresses = range(x.data_ptr(), x.data_ptr() + extent * x.itemsize)
        return there

    monkeypatch.setattr(executor, "_init_args_hst", arguments)


def watch_loops(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    """`range` and `tl.range` of the kernels, and sums; what is unrolled in the source is no loop."""
    for module in map(importlib.import_module, MODULES):
        monkeypatch.setattr(module, "range", lambda *bounds: seen.rounds(range(*bounds)), raising=False)
    patch = interpreter._patch_lang_core

    def patched(language: Any, *scope: Any) -> None:
        patch(language, *scope)
        language.range = lambda *bounds, loop_unroll_factor: seen.rounds(range(*bounds), loop_unroll_factor)

    monkeypatch.setattr(interpreter, "_patch_lang_core", patched)
    before(interpreter.ReduceOps, "apply", lambda *_: seen.wait_outside_loops(), monkeypatch)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    watch_memory(found, monkeypatch)
    watch_loops(found, monkeypatch)
    return found


@pytest.mark.parametrize("name", work_cases.CASES)
def test_work_is_what_the_interpreter_does(name: str, seen: Seen) -> None:
    case = work_cases.CASES[name]
    launches: list[Any] = []
    with watch_launches(launches.append):
        case.launch()
    seen.end()
    (launch,) = launches
    counted = work(launch)
    assert counted.programs == launch.grid == len(seen.trips) > 0
    assert counted.issued == seen.issued
    assert counted.dots == seen.dots
    assert counted.fmas == seen.products - case.scaled
    assert {counted.serial} == set(seen.trips)
    x = next(iter(launch.reads.values()))
    assert counted.halo == seen.pixels / (x.numel() if case.windowed else seen.pixels)
    assert counted.repeated == (seen.first - seen.pixels) * x.itemsize


def test_every_kernel_has_cases() -> None:
    kernels = {name.partition(":")[0] for name in work_cases.CASES}
    assert kernels == {
        name.strip("_").removesuffix("_kernel") for name in importlib.import_module(work.__module__)._KERNELS
    }


def test_a_tensor_that_is_not_counted_is_an_error() -> None:
    launches: list[Any] = []
    with watch_launches(launches.append):
        next(case for name, case in work_cases.CASES.items() if name.startswith("linear")).launch()
    with pytest.raises(KeyError, match="other"):
        work(launches[0]._replace(reads={**launches[0].reads, "other": torch.empty(1)}))
