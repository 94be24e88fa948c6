"""Calls of an op drawn from its spec alone: any sizes, options and optional tensors that it allows."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from mbv3fast.ops.spec import Arg, Spec, conv_shape
from mbv3fast.reference import ACTIVATIONS, GATES

_SIZES = {"N": (1, 3), "H": (1, 9), "W": (1, 9), "k": (1, 5)}  # others are channels
_CHANNELS = (1, 40)
_ACTIVATIONS = st.sampled_from([None, *ACTIVATIONS])
_OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "stride": st.integers(1, 3),
    "dilation": st.integers(1, 2),
    "padding": st.one_of(st.just("same"), st.integers(0, 2), st.tuples(*[st.integers(0, 3)] * 4)),
    "activation": _ACTIVATIONS,
    "squeeze_activation": _ACTIVATIONS,
    "linear_activation": _ACTIVATIONS,
    "gate": st.sampled_from([*GATES]),
}


@st.composite
def calls(draw: st.DrawFn, spec: Spec) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and options of a call in float32."""
    options = {name: draw(_OPTIONS[name], label=name) for name in spec.options}
    symbols = sorted({s for arg in spec.args for s in arg.shape.split() if not s.isdigit()} - {"P", "Q"})
    sizes = {symbol: draw(st.integers(*_SIZES.get(symbol, _CHANNELS)), label=symbol) for symbol in symbols}
    if "padding" in options:
        given = options["padding"]
        padding = (given,) * 4 if isinstance(given, int) else given
        shape = conv_shape((sizes["H"], sizes["W"]), sizes["k"], options["stride"], padding, options.get("dilation", 1))
        assume(min(shape.height, shape.width) > 0)
        sizes |= {"P": shape.height, "Q": shape.width}
    together = draw(st.booleans(), label="together")
    wanted = [
        arg
        for arg in spec.args
        if not arg.optional or (together if arg.name in spec.together else draw(st.booleans(), label=arg.name))
    ]
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99), label="seed"))
    return {arg.name: _random(arg, sizes, generator) for arg in wanted}, options


def _random(arg: Arg, sizes: dict[str, int], generator: torch.Generator) -> Tensor:
    shape = [int(s) if s.isdigit() else sizes[s] for s in arg.shape.split()]
    fan_in = torch.Size(shape[1:]).numel() if arg.name.endswith("weight") else 1
    return torch.randn(shape, generator=generator) / max(1, fan_in) ** 0.5
