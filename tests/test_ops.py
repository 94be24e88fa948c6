"""The public ops against their references, and what they refuse.

Here a CPU computes the reference; `tests/interpreted` runs the same tests on the kernels.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mbv3fast import ops, reference
from mbv3fast.ops import OPS
from tests.numerics import assert_agrees
from tests.op_cases import (
    BATCHES,
    CASES,
    DTYPES,
    FULL,
    KERNELS,
    NAN,
    Seen,
    call,
    listed,
    make,
    refer,
)
from tests.op_grid import calls


def scattered(t: Tensor) -> Tensor:
    """Every second element along each dimension of a tensor whose others are NaN."""
    poison = NAN if t.is_floating_point() else 255
    around = torch.full([2 * size + 1 for size in t.shape], poison, dtype=t.dtype)
    return around[(slice(1, None, 2),) * t.dim()].copy_(t)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": Tensor.contiguous,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "scattered": scattered,
    "reversed": lambda t: t.permute(*range(t.dim())[::-1]).contiguous().permute(*range(t.dim())[::-1]),
    "expanded": lambda t: t[:1].expand_as(t),
}
_KINDS = itertools.cycle(itertools.product(DTYPES, (True, False)))  # six, which take turns in five layouts


@pytest.mark.parametrize(
    ("name", "layout", "dtype", "wide"), [(*c, *next(_KINDS)) for c in itertools.product(CASES, LAYOUTS)]
)
def test_agrees_with_the_reference(name: str, layout: str, dtype: torch.dtype, wide: bool) -> None:
    """All tensors in one layout; `wide` biases are float32, others of x's dtype."""
    tensors = {n: LAYOUTS[layout](t) for n, t in make(name, dtype, torch.float32 if wide else dtype).items()}
    before = {n: t.clone() for n, t in tensors.items()}
    outputs = call(name, tensors)
    assert outputs[0].dtype == dtype
    assert all(torch.equal(tensors[n], before[n]) for n in tensors)
    for out, plain, truth in zip(outputs, refer(name, tensors), refer(name, tensors, torch.float64), strict=True):
        assert_agrees(out, plain, truth)
        assert out.is_contiguous(memory_format=torch.channels_last if out.dim() == 4 else torch.contiguous_format)


@pytest.mark.parametrize("name", CASES)
def test_an_empty_batch_gives_empty_outputs(name: str) -> None:
    expected = [(0, *out.shape[1:]) for out in refer(name, make(name))]
    assert [out.shape for out in call(name, make(name, N=0))] == expected


@pytest.mark.parametrize(("name", "dtype"), [*zip(BATCHES, itertools.cycle(DTYPES))])
def test_nan_stays_in_its_image(name: str, dtype: torch.dtype) -> None:
    tensors = make(name, dtype)
    spoilt = tensors | {"x": tensors["x"].clone()}
    spoilt["x"][1] = NAN
    for clean, out, expected in zip(call(name, tensors), call(name, spoilt), refer(name, spoilt), strict=True):
        assert torch.equal(out.isnan(), expected.isnan())
        assert out[1].isnan().any()
        assert torch.equal(out[::2], clean[::2])


NARROW = {"one pixel": {"H": 1, "W": 1}, "one channel": {"C": 1, "M": 1}, "empty": {"N": 0}}


@pytest.mark.parametrize("sizes", NARROW.values(), ids=NARROW)
def test_strides_are_those_of_channels_last(sizes: dict[str, int]) -> None:
    """Whatever the sizes, and as on meta."""
    tensors = make("pointwise", **sizes)
    (out,), (fake,) = call("pointwise", tensors), call("pointwise", {n: t.to("meta") for n, t in tensors.items()})
    assert fake.stride() == torch.empty(out.shape, memory_format=torch.channels_last).stride()
    assert out.stride() == fake.stride()


@pytest.mark.parametrize("op", OPS)
@settings(max_examples=6 if KERNELS else 40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_call_that_the_spec_allows(op: str, data: st.DataObject) -> None:
    tensors, options = data.draw(calls(OPS[op].spec))
    outputs = listed(getattr(ops, op)(**tensors, **options))
    padding = {"padding": (options["padding"],) * 4} if isinstance(options.get("padding"), int) else {}
    wide = {name: tensor.double() for name, tensor in tensors.items()}
    truths = listed(getattr(reference, f"{op}_ref")(**wide, **options | padding))
    for out, truth in zip(outputs, truths, strict=True):
        torch.testing.assert_close(out.double(), truth, rtol=1e-5, atol=1e-5)


GEOMETRY: dict[str, st.SearchStrategy[Any]] = {
    "size": st.tuples(st.integers(1, 7), st.integers(1, 7)),
    "kernel": st.integers(1, 3),
    "stride": st.integers(1, 3),
    "padding": st.one_of(st.just("same"), st.tuples(*[st.integers(0, 3)] * 4)),
    "batch": st.integers(1, 2),
    "channels": st.integers(1, 2),
}


def check_geometry(op: str, shapes: dict[str, tuple[int, ...]], reach: int, **options: Any) -> None:
    """On whole numbers, exactly; an x that, padding and all, is smaller than the kernel's reach is refused."""
    generator = torch.Generator().manual_seed(0)
    tensors = {n: torch.randint(-8, 9, shape, generator=generator).float() for n, shape in shapes.items()}
    (height, width), padding = shapes["x"][2:], options["padding"]
    left, right, top, bottom = (reach,) * 4 if padding == "same" else padding
    if min(height + top + bottom, width + left + right) < reach:
        with pytest.raises(ValueError, match=rf"^{op}: x is {height}x{width}, .* smaller than the kernel"):
            getattr(ops, op)(**tensors, **options)
    else:
        expected = getattr(reference, f"{op}_ref")(**tensors, **options)
        assert torch.equal(getattr(ops, op)(**tensors, **options), expected)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(**GEOMETRY, outputs=st.integers(1, 5))
def test_stem_conv_of_any_geometry(
    size: Any, kernel: int, stride: int, padding: Any, batch: int, channels: int, outputs: int
) -> None:
    shapes = {"x": (batch, channels, *size), "weight": (outputs, channels, kernel, kernel), "bias": (outputs,)}
    check_geometry("stem_conv", shapes, kernel, stride=stride, padding=padding, activation=None)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(**GEOMETRY, dilation=st.integers(1, 3))
def test_depthwise_conv_of_any_geometry(
    size: Any, kernel: int, stride: int, padding: Any, batch: int, channels: int, dilation: int
) -> None:
    shapes = {"x": (batch, channels, *size), "weight": (channels, 1, kernel, kernel), "bias": (channels,)}
    reach = (kernel - 1) * dilation + 1
    check_geometry("depthwise_conv", shapes, reach, stride=stride, padding=padding, dilation=dilation)


# Refusals


def assert_refused(error: type[Exception], message: str, name: str, tensors: dict[str, Any], **options: Any) -> None:
    """With a message that begins with the op and its argument, and says what is needed, before anything runs."""
    with Seen() as seen, pytest.raises(error, match=rf"^{CASES[name].op}: {message}"):
        call(name, tensors, **options)
    assert not seen.names


ARGS = [(name, arg) for op, name in FULL.items() for arg in OPS[op].spec.args]


def ids(argument: Any) -> str:
    return getattr(argument, "name", None) or str(argument)


@pytest.mark.parametrize(("name", "arg"), ARGS, ids=ids)
def test_refuses_what_is_no_tensor(name: str, arg: Any) -> None:
    for wrong in [[1.0], 1, np.zeros(3)] + ([] if arg.optional else [None]):
        message = rf"{arg.name} is a {type(wrong).__name__}, needs a tensor \["
        assert_refused(TypeError, message, name, make(name) | {arg.name: wrong})


@pytest.mark.parametrize(("name", "arg"), ARGS, ids=ids)
def test_refuses_dtypes(name: str, arg: Any) -> None:
    """float64 and whole numbers everywhere; half precision beside float32, which the first tensor may have."""
    first = arg == next(a for a in OPS[CASES[name].op].spec.args if a.kind != "image")
    for dtype in (torch.float64, torch.int64) + (() if first or arg.kind == "image" else (torch.bfloat16,)):
        tensors = make(name)
        tensors[arg.name] = tensors[arg.name].to(dtype)
        assert_refused(TypeError, f"{arg.name} is {dtype}, needs .*float32", name, tensors)


@pytest.mark.parametrize(("name", "arg"), ARGS, ids=ids)
def test_refuses_another_device(name: str, arg: Any) -> None:
    tensors = make(name)
    tensors[arg.name] = tensors[arg.name].to("meta")
    assert_refused(ValueError, r"\w+ is on (cpu|meta), \w+ on (cpu|meta); move one", name, tensors)


@pytest.mark.parametrize(("name", "arg"), ARGS, ids=ids)
def test_refuses_shapes(name: str, arg: Any) -> None:
    """Another rank, and another size wherever an argument before it, or a number, says what it must be."""
    tensors = make(name)
    known = {"P", "Q"}
    for before in itertools.takewhile(lambda a: a != arg, OPS[CASES[name].op].spec.args):
        known |= set(before.shape.split())
    symbols, right = arg.shape.split(), tensors[arg.name]
    bound = [i for i, s in enumerate(symbols) if s in known or s.isdigit() or s in symbols[:i]]
    misfits = [torch.cat([right, right.narrow(i, 0, 1)], dim=i) for i in bound]
    for wrong in (right[None], right[0], *misfits):
        needed = rf"\[{', '.join(symbols)}\]"
        message = rf"{arg.name} has shape \[{', '.join(map(str, wrong.shape))}\], needs {needed}"
        assert_refused(ValueError, message, name, tensors | {arg.name: wrong})
    assert bound or arg.name == "x"


WRONG: dict[str, tuple[Any, ...]] = {
    "stride": (0, -1, 1.5, True, "2", None),
    "dilation": (0, -1, 1.5, True, "2", None),
    "padding": ((1, 1, 1), (1, 1, 1, -1), (1, 1, 1, 1.5), "valid", -1, True, 1.0, None),
    "activation": ("gelu", "ReLU", "", 1, ["relu"]),
    "gate": ("tanh", "Sigmoid", "", 1, ["sigmoid"], None),
}


@pytest.mark.parametrize(("name", "option"), [(name, o) for op, name in FULL.items() for o in OPS[op].spec.options])
def test_refuses_options(name: str, option: str) -> None:
    for wrong in WRONG["activation" if option.endswith("activation") else option]:
        assert_refused(ValueError, f"{option}: got .*, needs ", name, make(name), **{option: wrong})


def test_one_number_pads_every_side() -> None:
    tensors, spelt = make("depthwise"), {"padding": (2, 2, 2, 2)}
    assert torch.equal(call("depthwise", tensors, padding=2)[0], call("depthwise", tensors, **spelt)[0])


def test_refuses_images_of_31_bits() -> None:
    x, weight = torch.empty(1, 1, 2**16, 2**15, device="meta"), torch.empty(1, 1, 3, 3, device="meta")
    with pytest.raises(ValueError, match="depthwise_conv: got images of 65536x32768, needs fewer than 2"):
        ops.depthwise_conv(x, weight, torch.empty(1, device="meta"), padding=1)


def test_refuses_a_padding_of_numpy() -> None:
    assert_refused(ValueError, "padding: got .*, needs ", "depthwise", make("depthwise"), padding=np.ones(4))


@pytest.mark.parametrize("name", [name for op, name in FULL.items() if "padding" in OPS[op].spec.options])
def test_refuses_an_x_smaller_than_the_kernel(name: str) -> None:
    tensors = {n: t for n, t in make(name, H=1, W=2).items() if n != "residual"}
    assert_refused(ValueError, "x is 1x2, .* smaller than the kernel", name, tensors, padding=(0, 0, 0, 0))


def test_refuses_a_kernel_of_no_taps() -> None:
    assert_refused(ValueError, "weight has shape", "depthwise", make("depthwise", k=0))


@pytest.mark.parametrize("given", ["factor", "shift"])
def test_refuses_half_a_normalisation(given: str) -> None:
    tensors = make("stem of bytes")
    del tensors[{"factor": "shift", "shift": "factor"}[given]]
    assert_refused(ValueError, "factor, shift: got some of them, needs all or none", "stem of bytes", tensors)
