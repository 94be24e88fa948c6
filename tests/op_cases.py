"""Calls of every public op: their tensors, their references, and what runs beneath them."""

from __future__ import annotations

import inspect
import os
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mbv3fast import ops, reference
from mbv3fast.ops import OPS

Tensors = dict[str, Tensor]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KERNELS = os.environ.get("TRITON_INTERPRET") == "1"
NAN = float("nan")


class Case(NamedTuple):
    """A call: the sizes of the symbols in the op's shapes, its options, which optional tensors, the image's dtype."""

    op: str
    sizes: dict[str, int]
    options: dict[str, Any]
    extras: tuple[str, ...] = ()
    image: torch.dtype | None = None


def case(op: str, options: dict[str, Any], *extras: str, image: torch.dtype | None = None, **sizes: int) -> Case:
    return Case(op, sizes, options, extras, image)


FOUR = {"padding": (2, 1, 0, 3)}
ONE = {"padding": (1, 1, 1, 1)}
SAME = {"padding": "same"}
RELU, HARDSWISH = {"activation": "relu"}, {"activation": "hardswish"}
CASES = {
    "stem": case("stem_conv", {}, N=3, C=3, H=8, W=7, M=16, k=3),
    "stem of bytes": case("stem_conv", SAME, "factor", "shift", image=torch.uint8, N=1, C=3, H=7, W=8, M=24, k=3),
    "stem of floats": case("stem_conv", FOUR | RELU, image=torch.float32, N=3, C=1, H=5, W=1, M=5, k=2),
    "pointwise": case("pointwise_conv", {}, N=3, C=24, H=5, W=7, M=40),
    "pointwise after squeeze": case(
        "pointwise_conv", HARDSWISH, "residual", "scale", N=3, C=36, H=4, W=5, M=20
    ),
    "pointwise on a pixel": case("pointwise_conv", RELU, "scale", N=1, C=16, H=1, W=1, M=24),
    "depthwise": case("depthwise_conv", SAME | {"stride": 2}, N=3, C=20, H=7, W=8, k=3),
    "depthwise, dilated": case("depthwise_conv", FOUR | HARDSWISH | {"dilation": 2}, N=3, C=16, H=6, W=5, k=3),
    "depthwise on a column": case("depthwise_conv", SAME | RELU, N=1, C=48, H=6, W=1, k=5),
    "excite and project": case(
        "depthwise_excite_project", ONE | RELU, "residual", N=3, C=20, H=6, W=5, k=3, S=6, M=24, P=6, Q=5
    ),
    "excite and project, dilated": case(
        "depthwise_excite_project",
        SAME | HARDSWISH | {"dilation": 2, "stride": 2, "squeeze_activation": "hardswish"},
        N=1, C=33, H=1, W=8, k=3, S=8, M=10,
    ),
    "inverted residual": case(
        "inverted_residual", SAME | RELU | {"stride": 2}, N=3, C=16, H=7, W=8, k=3, E=24, M=16
    ),
    "inverted residual with excite": case(
        "inverted_residual", ONE | HARDSWISH | {"squeeze_activation": "relu"},
        "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias", "residual",
        N=3, C=16, H=5, W=4, k=3, E=40, S=10, M=16, P=5, Q=4,
    ),
    "project": case("depthwise_project", ONE | RELU, "residual", N=3, C=24, H=5, W=6, k=3, M=20, P=5, Q=6),
    "project, dilated": case(
        "depthwise_project", FOUR | HARDSWISH | {"dilation": 2, "stride": 2}, N=1, C=20, H=6, W=8, k=3, M=40
    ),
    "excite": case("squeeze_excite", {}, N=3, C=24, H=5, W=4, S=8),
    "excite a column": case("squeeze_excite", HARDSWISH, N=1, C=33, H=4, W=1, S=5),
    "linear": case("linear", {}, N=3, C=40, M=24),
    "linear, one row": case("linear", HARDSWISH, N=1, C=33, M=10),
    "mean": case("pointwise_mean_linear", {}, N=3, C=24, H=3, W=4, M=40, L=20),
    "mean of a row": case(
        "pointwise_mean_linear", RELU | {"linear_activation": None}, N=1, C=16, H=1, W=5, M=33, L=10
    ),
}  # fmt: skip
FIRST = {c.op: name for name, c in reversed(CASES.items())}  # the first case of each op
BATCHES = [name for name, c in CASES.items() if c.sizes["N"] > 1]
FULL = {
    op: max((n for n, c in CASES.items() if c.op == op), key=lambda n: len(CASES[n].extras)) for op in FIRST
}  # the fullest case of each op


def make(name: str, dtype: torch.dtype = torch.float32, bias: torch.dtype = torch.float32, **sizes: int) -> Tensors:
    """The tensors of a case by the names of their arguments, random, of `sizes` where they are given."""
    given, generator = CASES[name], torch.Generator().manual_seed(0)
    sizes = {**given.sizes, **sizes}
    tensors = {}
    for arg in OPS[given.op].spec.args:
        if arg.optional and arg.name not in given.extras:
            continue
        shape = [int(s) if s.isdigit() else sizes[s] for s in arg.shape.split()]
        kind = {"first": dtype, "float32": torch.float32, "either": bias, "image": given.image or dtype}[arg.kind]
        fan_in = max(1, torch.Size(shape[1:]).numel()) if arg.name.endswith("weight") else 1
        values = torch.randn(shape, generator=generator) / fan_in**0.5
        tensors[arg.name] = (values * 64 + 128).clamp(0, 255).to(kind) if kind == torch.uint8 else values.to(kind)
    return tensors


def listed(result: Any) -> tuple[Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def call(name: str, tensors: Tensors, **options: Any) -> tuple[Tensor, ...]:
    """The public op."""
    given = CASES[name]
    return listed(getattr(ops, given.op)(**tensors, **(given.options | options)))


def refer(name: str, tensors: Tensors, dtype: torch.dtype | None = None, **options: Any) -> tuple[Tensor, ...]:
    """Its reference, on the tensors in `dtype` where one is given."""
    given = CASES[name]
    if dtype is not None:
        tensors = {n: t.to(dtype) if t.is_floating_point() else t for n, t in tensors.items()}
    return listed(getattr(reference, f"{given.op}_ref")(**tensors, **(given.options | options)))


def schema_call(name: str, tensors: Tensors) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    """The op of `torch.ops` and all its arguments, whose schema has no defaults."""
    op = CASES[name].op
    bound = inspect.signature(getattr(ops, op)).bind(**tensors, **CASES[name].options)
    bound.apply_defaults()
    if bound.arguments.get("padding") == "same":
        bound.arguments["padding"] = (1, 0, 2, 1)
    return getattr(torch.ops.mbv3fast, op).default, bound.args, bound.kwargs


class Seen(TorchDispatchMode):
    """Collects the names of the ops that run, of those within ours too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        if func.namespace != "mbv3fast":
            return func(*args, **(kwargs or {}))
        with self:  # which PyTorch leaves while it is here
            return func.redispatch(torch._C.DispatchKeySet(torch._C.DispatchKey.CPU), *args, **(kwargs or {}))
