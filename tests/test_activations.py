"""The activations and gates that ops take and our networks don't have, in every op that takes them.

Here a CPU computes the reference; `tests/interpreted` runs the same tests on the kernels.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from mbv3fast import ops, reference
from mbv3fast.ops import OPS
from mbv3fast.reference import ACTIVATIONS, GATES
from tests.numerics import assert_agrees
from tests.op_cases import CASES, DTYPES, FULL, NAN, Tensors, call, make, refer, schema_call
from tests.test_op_tools import gradients, trainable

OTHERS = {"activation": ("relu6", "silu"), "squeeze_activation": ("relu6", "silu"), "gate": ("sigmoid",)}
OTHERS |= {"linear_activation": OTHERS["activation"]}


def with_others(names: Iterable[str]) -> list[tuple[str, dict[str, Any]]]:
    """Cases by name, each with one option that is another."""
    options = {name: OPS[CASES[name].op].spec.options for name in names}
    return [(name, {o: value}) for name, taken in options.items() for o in taken for value in OTHERS.get(o, ())]


CALLS = with_others(FULL.values())
GATED = [name for name, options in CALLS if "gate" in options]
INFINITY = math.inf
# exp(-x) overflows below -88.7 in float32; at -inf the product of SiLU is one of infinity and 0.
VALUES = [NAN, 0.0, *(sign * size for size in (1e-4, 0.5, 2.9, 3.0, 6.0, 6.5, 40, 88, 89, 104, 6e4, INFINITY)
                      for sign in (1, -1))]  # fmt: skip


def wide(name: str, dtype: torch.dtype) -> Tensors:
    """The tensors of a case, of values that are often beyond 6."""
    tensors = make(name, dtype)
    return {n: 8 * t if t.is_floating_point() and (n == "x" or n.endswith("bias")) else t for n, t in tensors.items()}


def check(name: str, tensors: Tensors, options: dict[str, Any]) -> None:
    (out,), (plain,), (truth,), (default,) = (
        call(name, tensors, **options),
        refer(name, tensors, **options),
        refer(name, tensors, torch.float64, **options),
        refer(name, tensors, torch.float64),
    )
    assert_agrees(out, plain, truth)
    assert not torch.allclose(truth, default, rtol=1e-2), "the option decides nothing"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in Triton's interpreter: exp may overflow
@pytest.mark.parametrize(("name", "options", "dtype"), [(*c, d) for c, d in zip(CALLS, itertools.cycle(DTYPES))])
def test_agrees_with_the_reference_by_every_activation(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    check(name, wide(name, dtype), options)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_extreme_values_are_activated_as_by_pytorch(activation: Any, dtype: torch.dtype) -> None:
    x = torch.tensor(VALUES).to(dtype)[None, None, None]
    one, zero = torch.ones(1, 1, 1, 1, dtype=dtype), torch.zeros(1)
    out = ops.depthwise_conv(x, one, zero, padding=0, activation=activation)
    torch.testing.assert_close(out, ACTIVATIONS[activation](x), equal_nan=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("gate", GATES)
def test_extreme_values_pass_a_gate_as_by_pytorch(gate: Any) -> None:
    bias = torch.tensor(VALUES)
    channels = len(bias)
    x, to_one, from_one = torch.ones(1, channels, 1, 1), torch.zeros(1, channels), torch.zeros(channels, 1)
    out = ops.squeeze_excite(x, to_one, torch.zeros(1), from_one, bias, gate=gate)
    torch.testing.assert_close(out[0, :, 0, 0], GATES[gate](bias), equal_nan=True)


@pytest.mark.parametrize(("name", "options"), CALLS)
def test_gradients_are_the_references(name: str, options: dict[str, Any]) -> None:
    tensors = trainable(name)
    pairs = zip(
        gradients(call(name, tensors, **options), tensors),
        gradients(refer(name, tensors, **options), tensors),
        strict=True,
    )
    for gradient, other in pairs:
        torch.testing.assert_close(gradient, other)
        assert gradient.any()


@pytest.mark.parametrize("activation", ["silu", "relu6"])
def test_gradients_of_the_reference_are_its_slopes(activation: Any) -> None:
    name = FULL["inverted_residual"]
    tensors = {n: t.double().requires_grad_() for n, t in make(name, N=1, H=2, W=2, P=2, Q=2, C=3, E=4, M=3).items()}

    def run(*values: Tensor) -> Tensor:
        given = dict(zip(tensors, values, strict=True))
        options = CASES[name].options | {"activation": activation, "squeeze_activation": activation, "gate": "sigmoid"}
        return reference.inverted_residual_ref(**given, **options)

    assert torch.autograd.gradcheck(run, tuple(tensors.values()))


def test_opcheck_of_a_gate() -> None:
    op, args, kwargs = schema_call("excite", make("excite", N=2))
    torch.library.opcheck(op, args, kwargs | {"activation": "silu", "gate": "sigmoid"})


@pytest.mark.parametrize("name", GATED)
def test_a_call_that_names_no_gate_has_a_hardsigmoid(name: str) -> None:
    """As plans call the ops, and programs that were exported by them."""
    op, args, kwargs = schema_call(name, make(name))
    assert kwargs.pop("gate") == "hardsigmoid"
    assert torch.equal(op(*args, **kwargs), op(*args, **kwargs, gate="hardsigmoid"))
    assert not torch.equal(op(*args, **kwargs), op(*args, **kwargs, gate="sigmoid"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
@pytest.mark.parametrize(("name", "options"), CALLS)
def test_on_a_gpu(name: str, options: dict[str, Any], backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBV3FAST_BACKEND", backend)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    for dtype in DTYPES:
        check(name, {n: t.cuda() for n, t in wide(name, dtype).items()}, options)
