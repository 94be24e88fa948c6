"""What PyTorch's own tools make of the public ops: compile, export, fakes, gradients.

Here a CPU computes the reference; `tests/interpreted` runs the same tests on the kernels.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from mbv3fast.ops import OPS
from tests.op_cases import (
    CASES,
    FIRST,
    FULL,
    Tensors,
    call,
    make,
    refer,
    schema_call,
)


@pytest.mark.parametrize("name", FIRST.values())
def test_opcheck(name: str) -> None:
    op, args, kwargs = schema_call(name, make(name, N=2))
    torch.library.opcheck(op, args, kwargs)


def assert_same(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    """Equal bits in equal memory."""
    for out, other in zip(got, expected, strict=True):
        assert torch.equal(out, other)
        assert (out.dtype, out.stride()) == (other.dtype, other.stride())


@pytest.mark.parametrize("name", FIRST.values())
def test_compile(name: str) -> None:
    torch._dynamo.reset()
    tensors = make(name, N=2)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert_same(compiled(name, tensors), call(name, tensors))


class Network(nn.Module):
    """A module of one op, whose weights are parameters."""

    def __init__(self, name: str, weights: Tensors) -> None:
        super().__init__()
        self.name = name
        self.weights = nn.ParameterDict(weights)

    def forward(self, images: Tensors) -> tuple[Tensor, ...]:
        return call(self.name, images | dict(self.weights.items()))


def of_images(name: str, tensors: Tensors) -> Tensors:
    """Those whose first dimension is the batch."""
    return {arg.name: tensors[arg.name] for arg in OPS[CASES[name].op].spec.args
            if arg.name in tensors and arg.shape.startswith("N")}  # fmt: skip


@pytest.mark.parametrize("name", FIRST.values())
def test_export(name: str) -> None:
    """With a dynamic batch; the op stays a node, also after decomposition."""
    tensors = make(name, N=2)
    images = of_images(name, tensors)
    model = Network(name, {n: t for n, t in tensors.items() if n not in images})
    shapes = {n: {0: torch.export.Dim.DYNAMIC} for n in images}
    exported = torch.export.export(model, (images,), dynamic_shapes=(shapes,))
    for program in (exported, exported.run_decompositions()):
        targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
        assert {t for t in targets if "getitem" not in t} == {f"mbv3fast.{CASES[name].op}.default"}
    for batch in (1, 3):
        images = of_images(name, make(name, N=batch))
        with torch.no_grad():
            assert_same(exported.module()(images), model(images))


@pytest.mark.parametrize("name", CASES)
def test_fakes_have_the_shapes(name: str) -> None:
    """Fake tensors' and meta tensors' results: shapes, dtypes, strides."""
    tensors = make(name, torch.float16)
    expected = [(out.shape, out.dtype) for out in refer(name, tensors)]
    with FakeTensorMode() as mode:
        fakes = call(name, {n: mode.from_tensor(t) for n, t in tensors.items()})
    metas = call(name, {n: t.to("meta") for n, t in tensors.items()})
    for outputs in (fakes, metas):
        assert [(out.shape, out.dtype) for out in outputs] == expected
        layouts = {4: torch.channels_last, 2: torch.contiguous_format}
        assert all(out.is_contiguous(memory_format=layouts[out.dim()]) for out in outputs)
    assert all(out.is_meta for out in metas)


def gradients(outputs: tuple[Tensor, ...], tensors: Tensors) -> tuple[Tensor, ...]:
    """Of a sum with weights of all outputs, for all tensors that have any."""
    total = sum((out * torch.linspace(-1, 2, out.numel()).view(out.shape)).sum() for out in outputs)
    assert isinstance(total, Tensor)
    return torch.autograd.grad(total, [t for t in tensors.values() if t.requires_grad])


def trainable(name: str) -> Tensors:
    return {n: t.requires_grad_(t.is_floating_point()) for n, t in make(name).items()}


@pytest.mark.parametrize("name", CASES)
def test_gradients_are_the_references(name: str) -> None:
    tensors = trainable(name)
    outputs, expected = call(name, tensors), refer(name, tensors)
    for out, other in zip(outputs, expected, strict=True):
        assert torch.equal(out, other)
        assert out.is_contiguous(memory_format=torch.channels_last if out.dim() == 4 else torch.contiguous_format)
    pairs = zip(gradients(outputs, tensors), gradients(expected, tensors), strict=True)
    for gradient, other in pairs:
        torch.testing.assert_close(gradient, other)
        assert gradient.any()


@pytest.mark.parametrize("name", FULL.values())
def test_compile_for_training(name: str) -> None:
    torch._dynamo.reset()
    tensors = trainable(name)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    pairs = zip(gradients(compiled(name, tensors), tensors), gradients(call(name, tensors), tensors), strict=True)
    for gradient, other in pairs:
        torch.testing.assert_close(gradient, other)


def test_gradients_where_a_residual_follows_relu() -> None:
    tensors = trainable("pointwise after squeeze")
    gradients(call("pointwise after squeeze", tensors, activation="relu"), tensors)


def test_forward_mode_derivative() -> None:
    tensors = make("linear")
    x = tensors.pop("x")
    outputs = [
        torch.func.jvp(lambda x, run=run: run("linear", tensors | {"x": x})[0], (x,), (torch.ones_like(x),))[1]
        for run in (call, refer)
    ]
    torch.testing.assert_close(*outputs)


def test_autocast_leaves_the_dtype() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert call("pointwise", make("pointwise"))[0].dtype == torch.float32
