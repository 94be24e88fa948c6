"""What an op takes and makes, as data: its checks, its schema, its fake and its counts all follow from one Spec."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mbv3fast.layers import Padding, same_padding
from mbv3fast.reference import ACTIVATIONS, GATES

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Sizes = Mapping[str, int]
Kind = Literal["first", "float32", "either", "image"]
_KINDS: dict[Kind, str] = {
    "first": "{first}, as the first tensor has",
    "float32": "torch.float32",
    "either": "torch.float32 or {first}",
    "image": "float32, float16, bfloat16 or uint8",
}


class Arg(NamedTuple):
    """A tensor. `shape` is of symbols and numbers: "N C H W" is in channels_last memory, wherever it stands."""

    name: str
    shape: str
    kind: Kind = "first"
    optional: bool = False

    @property
    def schema(self) -> str:
        return f"Tensor{'?' if self.optional else ''} {self.name}"


class Output(NamedTuple):
    """A result, named as in the documentation."""

    name: str
    shape: str


_OPTION_TYPES = {
    "stride": "int",
    "dilation": "int",
    "padding": "int[]",
    "activation": "str?",
    "squeeze_activation": "str?",
    "linear_activation": "str?",
    "gate": "str",
}
_DEFAULTS = {"gate": "hardsigmoid"}  # which plans don't name: our networks have no other


@dataclass(frozen=True)
class Spec:
    """An op. The first argument that is no image decides device and dtype: those of `kind` "first" have its.

    In shapes, N C H W is the input, M the output's channels, k the kernel's size, S the squeezed channels and
    P Q the height and width of a convolution's output. `macs` are the multiply-adds of one call.
    """

    name: str
    args: tuple[Arg, ...]
    outputs: tuple[Output, ...]
    options: tuple[str, ...]
    macs: Callable[[Sizes], int]
    together: tuple[str, ...] = ()  # optional tensors of which all are given or none

    @property
    def schema(self) -> str:
        """In the notation of torch.library."""
        tensors = ", ".join(arg.schema for arg in self.args)
        defaults = {name: f'="{_DEFAULTS[name]}"' for name in self.options if name in _DEFAULTS}
        options = ", ".join(f"{_OPTION_TYPES[name]} {name}{defaults.get(name, '')}" for name in self.options)
        results = ", ".join("Tensor" for _ in self.outputs)
        return f"{self.name}({tensors}{', *, ' + options if options else ''}) -> ({results})"

    def check(self, tensors: Sequence[Tensor | None], options: Mapping[str, Any]) -> Sizes:
        """The size of every symbol. Raises TypeError or ValueError that name argument, what was got, what is needed."""
        options = {**_DEFAULTS, **options}
        for name in self.options:
            _check_option(f"{self.name}: {name}", name, options[name])
        given = self._given(tensors)
        named = {arg.name for arg, _ in given}
        if self.together and 0 < len(named.intersection(self.together)) < len(self.together):
            raise ValueError(f"{self.name}: {', '.join(self.together)}: got some of them, needs all or none")
        leader_arg, leader = next((arg, tensor) for arg, tensor in given if arg.kind != "image")
        for arg, tensor in given:
            _check_dtype(f"{self.name}: {arg.name}", arg, tensor, leader)
            if tensor.device != leader.device:
                raise ValueError(
                    f"{self.name}: {arg.name} is on {tensor.device}, {leader_arg.name} on {leader.device}; move one"
                )
        sizes = self.sizes({arg.name: tensor.shape for arg, tensor in given}, options)
        for height, width in (("H", "W"), ("P", "Q")):
            size = sizes.get(height, 1), sizes.get(width, 1)
            if all(type(s) is int for s in size) and size[0] * size[1] >= 2**31:
                raise ValueError(f"{self.name}: got images of {size[0]}x{size[1]}, needs fewer than 2^31 pixels each")
        return sizes

    def _given(self, tensors: Sequence[Tensor | None]) -> list[tuple[Arg, Tensor]]:
        given = []
        for arg, tensor in zip(self.args, tensors, strict=True):
            if isinstance(tensor, Tensor):
                given.append((arg, tensor))
            elif tensor is not None or not arg.optional:
                needed = f"a tensor [{', '.join(arg.shape.split())}]"
                raise TypeError(f"{self.name}: {arg.name} is a {type(tensor).__name__}, needs {needed}")
        return given

    def sizes(self, shapes: Mapping[str, Sequence[int]], options: Mapping[str, Any]) -> Sizes:
        """The size of every symbol, from the shapes of the arguments. Raises ValueError where they don't fit."""
        sizes: dict[str, int] = {}
        origins: dict[str, str] = {}
        for arg in self.args:
            shape = shapes.get(arg.name)
            if shape is None:
                continue
            if "P" in arg.shape.split() and "P" not in sizes:
                self._output_size(sizes, options)
            _bind(f"{self.name}: {arg.name}", arg, shape, sizes, origins)
        if "padding" in self.options and "P" not in sizes:
            self._output_size(sizes, options)
        return sizes

    def _output_size(self, sizes: dict[str, int], options: Mapping[str, Any]) -> None:
        dilation = options.get("dilation", 1)
        size = sizes["H"], sizes["W"]
        shape = conv_shape(size, sizes["k"], options["stride"], options["padding"], dilation)
        if min(shape.height, shape.width) < 1:
            raise ValueError(f"{self.name}: x is {size[0]}x{size[1]}, with its padding smaller than the kernel")
        sizes |= {"P": shape.height, "Q": shape.width}

    def dtype_of(self, argument: str, dtype: torch.dtype) -> torch.dtype:
        """Of an argument that an earlier op of a network makes, where the network computes in `dtype`."""
        kinds = {arg.name: arg.kind for arg in self.args}
        return torch.float32 if kinds[argument] == "float32" else dtype

    def output_shapes(self, sizes: Sizes) -> list[tuple[int, ...]]:
        """The shape of each output."""
        return [tuple(sizes[symbol] for symbol in output.shape.split()) for output in self.outputs]


class ConvShape(NamedTuple):
    """The size of a convolution's output, and its padding (left, right, top, bottom) in numbers."""

    height: int
    width: int
    padding: Padding


def conv_shape(
    size: tuple[int, int], kernel: int, stride: int, padding: Sequence[int] | str, dilation: int = 1
) -> ConvShape:
    """For an input of height and width `size`; padding "same" is TensorFlow's, which depends on them."""
    height, width = size
    if isinstance(padding, str):
        padding = same_padding(height, width, (kernel,) * 2, (stride,) * 2, (dilation,) * 2)
    left, right, top, bottom = padding
    reach = (kernel - 1) * dilation + 1
    rows, columns = height + top + bottom, width + left + right
    return ConvShape((rows - reach) // stride + 1, (columns - reach) // stride + 1, padding=(left, right, top, bottom))


def _bind(where: str, arg: Arg, shape: Sequence[int], sizes: dict[str, int], origins: dict[str, str]) -> None:
    """Give the symbols of `arg.shape` their sizes, or compare with those they have."""
    symbols = arg.shape.split()
    fits = len(shape) == len(symbols)
    found: dict[str, int] = {}
    for symbol, size in zip(symbols, shape, strict=False):
        known = int(symbol) if symbol.isdigit() else sizes.get(symbol, found.setdefault(symbol, size))
        fits = fits and known == size
    if not fits or any(size < 1 for symbol, size in found.items() if symbol != "N"):
        known_sizes = ", ".join(f"{s} = {sizes[s]} of {origins.get(s, 'the output')}" for s in symbols if s in sizes)
        needed = f"[{', '.join(symbols)}]" + (f" with {known_sizes}" if known_sizes else "")
        needed += "" if not fits else ", each from 1 but for an empty batch"
        raise ValueError(f"{where} has shape {list(shape)}, needs {needed}")
    sizes |= found
    origins |= dict.fromkeys(found, arg.name)


def _check_dtype(where: str, arg: Arg, tensor: Tensor, leader: Tensor) -> None:
    allowed = {
        "first": (leader.dtype,),
        "float32": (torch.float32,),
        "either": (torch.float32, leader.dtype),
        "image": (*DTYPES, torch.uint8),
    }[arg.kind]
    if leader is tensor and arg.kind == "first":
        allowed = DTYPES
    if tensor.dtype not in allowed:
        needed = "float32, float16 or bfloat16" if leader is tensor else _KINDS[arg.kind].format(first=leader.dtype)
        raise TypeError(f"{where} is {tensor.dtype}, needs {needed}")


def _check_option(where: str, name: str, value: Any) -> None:
    if name in ("stride", "dilation") and not _is_number(value, 1):
        raise ValueError(f"{where}: got {value!r}, needs a whole number from 1")
    if name.endswith("activation") and value not in (None, *ACTIVATIONS):
        raise ValueError(f"{where}: got {value!r}, needs {', '.join(map(repr, ACTIVATIONS))} or None")
    if name == "gate" and value not in (*GATES,):
        raise ValueError(f"{where}: got {value!r}, needs {' or '.join(map(repr, GATES))}")
    if name == "padding" and not (isinstance(value, str) and value == "same"):
        fits = isinstance(value, (tuple, list)) and len(value) == 4
        if not fits or not all(_is_number(p, 0) for p in value):
            raise ValueError(f"{where}: got {value!r}, needs a number from 0, 4 (left, right, top, bottom) or 'same'")


def _is_number(value: Any, least: int) -> bool:
    """Whether `value` is a whole number, or one that tracing has not fixed."""
    whole = isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)
    return whole and least <= value < 2**31
