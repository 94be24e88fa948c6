"""What PyTorch's tools make of the kernels, when they run, and what they are handed of more than 2^31 elements."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mbv3fast.launching import watch_launches
from mbv3fast.ops import OPS
from mbv3fast.ops.target import Target
from mbv3fast.reference import GATES
from tests.op_cases import CASES, FIRST, Tensors, call, listed, make, refer, schema_call
from tests.test_op_tools import (
    assert_same,
    of_images,
    test_autocast_leaves_the_dtype,
    test_compile,
    test_export,
    test_fakes_have_the_shapes,
    test_forward_mode_derivative,
    test_gradients_are_the_references,
    test_opcheck,
    trainable,
)

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1: `make test-kernels`", allow_module_level=True)
pytest.importorskip("triton.runtime.interpreter")
common = pytest.importorskip("mbv3fast.kernels._common")

__all__ = [
    "test_autocast_leaves_the_dtype",
    "test_compile",
    "test_export",
    "test_fakes_have_the_shapes",
    "test_forward_mode_derivative",
    "test_gradients_are_the_references",
    "test_opcheck",
]


def launched(run: Callable[[], Any]) -> list[Any]:
    """The launches of `run()`."""
    seen: list[Any] = []
    with watch_launches(seen.append):
        run()
    return seen


@pytest.mark.parametrize("name", FIRST.values())
def test_kernels_run_where_no_gradient_is_recorded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = trainable(name)
    assert not launched(lambda: call(name, tensors))
    with torch.no_grad():
        assert launched(lambda: call(name, tensors))
    monkeypatch.setenv("MBV3FAST_BACKEND", "torch")
    plain = {n: t.detach() for n, t in tensors.items()}
    assert not launched(lambda: assert_same(call(name, plain), refer_in_layout(name, plain)))


def refer_in_layout(name: str, tensors: Tensors) -> tuple[torch.Tensor, ...]:
    """The reference's outputs in channels_last memory."""
    outputs = refer(name, tensors)
    return tuple(o.contiguous(memory_format=torch.channels_last) if o.dim() == 4 else o for o in outputs)


def test_the_registered_op_refuses_what_does_not_fit() -> None:
    tensors = make("linear")
    op, args, kwargs = schema_call("linear", tensors | {"weight": tensors["weight"].repeat(1, 2)})
    with pytest.raises((ValueError, RuntimeError)):
        op(*args, **kwargs)


def dry_run(name: str, batch: int) -> list[Any]:
    """The launches of an op for so many images on meta."""
    tensors = {n: t.to("meta") for n, t in make(name).items()}
    images = {n: t.new_empty(batch, *t.shape[1:]) for n, t in of_images(name, tensors).items()}
    _, args, kwargs = schema_call(name, tensors | images)
    outputs: list[torch.Tensor] = []
    seen = launched(lambda: outputs.extend(listed(OPS[CASES[name].op].run(*args, **kwargs))))
    assert [out.shape for out in outputs] == [(batch, *out.shape[1:]) for out in refer(name, make(name))]
    return seen


@pytest.mark.parametrize("name", FIRST.values())
def test_dry_runs_of_more_than_31_bits(name: str) -> None:
    """On meta the same launches are seen: four times the images, four times the programs, however many."""
    few, many = dry_run(name, 2**24), dry_run(name, 2**26)
    assert few
    assert many[0].reads["x"].numel() > 2**31
    assert [launch.grid for launch in many] == [4 * launch.grid for launch in few]


def test_the_grid_of_more_than_31_bits() -> None:
    (launch,) = dry_run("pointwise", 2**26)
    blocks = launch.constants
    assert launch.grid == -(-(2**26 * 35) // blocks["BLOCK_M"]) * -(-40 // blocks["BLOCK_N"])
    assert launch.reads["x"].numel() == 2**26 * 35 * 24


class Stub:
    """In place of a kernel: keeps the grids that it is launched with."""

    __name__ = "stub"

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *_, **__: self.grids.append(grid)


def test_a_grid_that_no_gpu_takes_is_refused() -> None:
    stub, most = Stub(), 2**31 - 1
    common.launch(stub, most, (), (torch.empty(1),), (), config={})
    with pytest.raises(ValueError, match=f"^stub: {2**31} programs, a launch has at most {most}; split the batch"):
        common.launch(stub, most + 1, (), (torch.empty(1),), (), config={})
    assert stub.grids == [(most,)]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("name", ["excite and project", "excite and project, dilated"])
def test_an_excite_in_its_neighbour_or_alone_for_few_or_many(name: str, gate: str) -> None:
    _, args, kwargs = schema_call(name, make(name))
    kwargs["gate"] = gate
    if CASES[name].options["padding"] == "same":
        kwargs["padding"] = (2, 2, 2, 2)
    run = OPS[CASES[name].op].run
    blocks = {"BLOCK_M": 16, "BLOCK_C": 16, "BLOCK_K": 32}
    ways: list[dict[str, Any]] = [{}, {"excite_project": {}}, {"excite_project": {}, "excite_images": blocks}]
    targets = [Target(interpreted=True, overrides=overrides) for overrides in ways]
    counts = [len(launched(lambda target=target: run(*args, **kwargs, target=target))) for target in targets]
    assert counts == [2, 3, 3]
    inside, *others = [run(*args, **kwargs, target=target) for target in targets]
    for other in others:
        torch.testing.assert_close(inside, other, rtol=1e-5, atol=1e-5)
