"""The reference ops against sums written out tap by tap, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mbv3fast import reference, torch_ops
from mbv3fast.layers import Padding

EXACT = {"rtol": 0.0, "atol": 1e-10}
ACTIVATIONS = (None, "relu", "relu6", "hardswish", "silu")


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def hardsigmoid(x: Tensor) -> Tensor:
    return (x + 3).clamp(0, 6) / 6


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


GATES: dict[str, Callable[[Tensor], Tensor]] = {"hardsigmoid": hardsigmoid, "sigmoid": sigmoid}


def activated(x: Tensor, activation: str | None) -> Tensor:
    smooth = {"hardswish": x * hardsigmoid(x), "silu": x * sigmoid(x)}
    return {None: x, "relu": x.clamp(min=0), "relu6": x.clamp(0, 6), **smooth}[activation]


def windows(x: Tensor, kernel: int, stride: int, padding: Padding, dilation: int) -> dict[tuple[int, int], Tensor]:
    """For each tap the [N, C, H', W'] values that it multiplies; zeros outside x."""
    left, right, top, bottom = padding
    batch, channels, height, width = x.shape
    around = x.new_zeros(batch, channels, height + top + bottom, width + left + right)
    around[:, :, top : top + height, left : left + width] = x
    reach = dilation * (kernel - 1)

    def view(row: int, column: int) -> Tensor:
        rows = slice(row * dilation, around.shape[2] - reach + row * dilation, stride)
        columns = slice(column * dilation, around.shape[3] - reach + column * dilation, stride)
        return around[:, :, rows, columns]

    return {(row, column): view(row, column) for row in range(kernel) for column in range(kernel)}


def same(size: tuple[int, int], kernel: int, stride: int, dilation: int) -> Padding:
    """TensorFlow's definition: as little as makes ceil(size / stride) outputs, the odd one after."""

    def split(length: int) -> tuple[int, int]:
        total = max((math.ceil(length / stride) - 1) * stride + dilation * (kernel - 1) + 1 - length, 0)
        return math.floor(total / 2), math.ceil(total / 2)

    return (*split(size[1]), *split(size[0]))


PADDINGS = st.one_of(st.just("same"), st.tuples(*[st.integers(0, 4)] * 4))
GEOMETRY = {
    "batch": st.integers(1, 3),
    "size": st.tuples(st.integers(9, 17), st.integers(9, 17)),
    "kernel": st.sampled_from([3, 5]),
    "stride": st.sampled_from([1, 2]),
    "padding": PADDINGS,
    "activation": st.sampled_from(ACTIVATIONS),
}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(**GEOMETRY)
def test_stem_conv(batch: int, size: tuple[int, int], kernel: int, stride: int, padding: Any, activation: Any) -> None:
    x, weight, bias = randn(batch, 3, *size), randn(8, 3, kernel, kernel, seed=1), randn(8, seed=2)
    around = same(size, kernel, stride, 1) if padding == "same" else padding
    taps = windows(x, kernel, stride, around, 1).items()
    total = sum(torch.einsum("nchw,oc->nohw", values, weight[:, :, row, column]) for (row, column), values in taps)
    expected = activated(total + bias[:, None, None], activation)
    got = reference.stem_conv_ref(x, weight, bias, stride=stride, padding=padding, activation=activation)
    torch.testing.assert_close(got, expected, **EXACT)


def test_the_stems_defaults_are_the_papers() -> None:
    x, weight, bias = randn(2, 3, 9, 8), randn(8, 3, 3, 3, seed=1), randn(8, seed=2)
    explicit = reference.stem_conv_ref(x, weight, bias, stride=2, padding=(1, 1, 1, 1), activation="hardswish")
    assert torch.equal(reference.stem_conv_ref(x, weight, bias), explicit)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(**GEOMETRY, dilation=st.sampled_from([1, 2]))
def test_depthwise_conv(
    batch: int, size: tuple[int, int], kernel: int, stride: int, padding: Any, activation: Any, dilation: int
) -> None:
    x, weight, bias = randn(batch, 6, *size), randn(6, 1, kernel, kernel, seed=1), randn(6, seed=2)
    around = same(size, kernel, stride, dilation) if padding == "same" else padding
    taps = windows(x, kernel, stride, around, dilation).items()
    total = sum(values * weight[:, 0, row, column, None, None] for (row, column), values in taps)
    expected = activated(total + bias[:, None, None], activation)
    got = reference.depthwise_conv_ref(
        x, weight, bias, stride=stride, padding=padding, dilation=dilation, activation=activation
    )
    torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (3, 5462)])  # the last is too many pixels for a matrix product
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("op", [reference.pointwise_conv_ref, torch_ops.pointwise_conv])
def test_pointwise_conv(
    op: Callable[..., Tensor], activation: Any, residual: bool, size: tuple[int, int], layout: torch.memory_format
) -> None:
    x, weight, bias = randn(3, 7, *size), randn(9, 7, 1, 1, seed=1), randn(9, seed=2)
    added = randn(3, 9, *size, seed=3) if residual else None
    expected = activated(torch.einsum("nchw,oc->nohw", x, weight[:, :, 0, 0]) + bias[:, None, None], activation)
    x = x.contiguous(memory_format=layout)
    got = op(x, weight, bias, added, activation=activation)
    torch.testing.assert_close(got, expected if added is None else expected + added, **EXACT)
    assert got.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    ("op", "inplace", "gate"),
    [
        (reference.squeeze_excite_ref, False, {}),
        (reference.squeeze_excite_ref, False, {"gate": "sigmoid"}),
        (torch_ops.squeeze_excite_, True, {}),
    ],
)
def test_squeeze_excite(op: Callable[..., Tensor], inplace: bool, gate: dict[str, str], activation: Any) -> None:
    x = 3 * randn(3, 8, 5, 4) + 1
    matrices = (randn(4, 8, seed=1), randn(4, seed=2), randn(8, 4, seed=3), randn(8, seed=4))
    fc1, bias1, fc2, bias2 = matrices
    mean = x.sum((2, 3)) / 20
    hidden = activated(mean @ fc1.T + bias1, activation)
    expected = x * GATES[gate.get("gate", "hardsigmoid")](hidden @ fc2.T + bias2)[:, :, None, None]
    given_x = x.clone()
    got = op(given_x, *matrices, activation=activation, **gate)
    torch.testing.assert_close(got, expected, **EXACT)
    assert (got.data_ptr() == given_x.data_ptr()) is inplace
    assert torch.equal(given_x, got if inplace else x)


def test_bytes_are_normalised_before_the_zeros_around_them() -> None:
    x = torch.randint(0, 256, (2, 3, 9, 8), dtype=torch.uint8)
    mean, std = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64), torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64)
    weight, bias = randn(8, 3, 3, 3, seed=1), randn(8, seed=2)
    normalised = (x.double() / 255 - mean[:, None, None]) / std[:, None, None]
    got = reference.stem_conv_ref(x, weight, bias, 1 / (255 * std), mean / std)
    torch.testing.assert_close(got, reference.stem_conv_ref(normalised, weight, bias), **EXACT)


def test_pointwise_conv_scales_each_image_and_channel() -> None:
    x, weight, bias, scale = randn(3, 7, 4, 5), randn(9, 7, 1, 1, seed=1), randn(9, seed=2), randn(3, 7, seed=3)
    expected = torch.einsum("nchw,nc,oc->nohw", x, scale, weight[:, :, 0, 0]) + bias[:, None, None]
    torch.testing.assert_close(reference.pointwise_conv_ref(x, weight, bias, None, scale), expected, **EXACT)


def test_depthwise_project() -> None:
    x, weight, bias = randn(2, 6, 9, 7), randn(6, 1, 3, 3, seed=1), randn(6, seed=2)
    project, project_bias, residual = randn(4, 6, 1, 1, seed=3), randn(4, seed=4), randn(2, 4, 5, 4, seed=5)
    geometry: Any = {"stride": 2, "padding": (1, 1, 1, 1), "activation": "relu"}
    depthwise = reference.depthwise_conv_ref(x, weight, bias, **geometry)
    expected = torch.einsum("nchw,oc->nohw", depthwise, project[:, :, 0, 0]) + project_bias[:, None, None] + residual
    got = reference.depthwise_project_ref(x, weight, bias, project, project_bias, residual, **geometry)
    torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("gate", GATES)
def test_depthwise_excite_project(gate: Any) -> None:
    x, weight, bias = randn(2, 8, 9, 7), randn(8, 1, 3, 3, seed=1), randn(8, seed=2)
    matrices = (randn(4, 8, seed=1), randn(4, seed=2), randn(8, 4, seed=3), randn(8, seed=4))
    project, project_bias, residual = randn(6, 8, 1, 1, seed=3), randn(6, seed=4), randn(2, 6, 5, 4, seed=5)
    geometry: Any = {"stride": 2, "padding": (1, 1, 1, 1), "activation": "hardswish"}
    depthwise = reference.depthwise_conv_ref(x, weight, bias, **geometry)
    excited = reference.squeeze_excite_ref(depthwise, *matrices, activation="hardswish", gate=gate)
    expected = torch.einsum("nchw,oc->nohw", excited, project[:, :, 0, 0]) + project_bias[:, None, None] + residual
    tensors = (x, weight, bias, *matrices, project, project_bias, residual)
    got = reference.depthwise_excite_project_ref(*tensors, **geometry, squeeze_activation="hardswish", gate=gate)
    torch.testing.assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("gate", GATES)
def test_inverted_residual(gate: Any) -> None:
    x, expand, expand_bias = randn(2, 4, 9, 7), randn(8, 4, 1, 1, seed=5), randn(8, seed=6)
    weight, bias, project, project_bias = randn(8, 1, 3, 3, seed=1), randn(8, seed=2), randn(6, 8, 1, 1), randn(6)
    matrices = (randn(4, 8, seed=1), randn(4, seed=2), randn(8, 4, seed=3), randn(8, seed=4))
    options: Any = {"stride": 2, "padding": (1, 1, 1, 1), "activation": "silu"}
    between: Any = {"squeeze_activation": "relu6", "gate": gate}
    expanded = reference.pointwise_conv_ref(x, expand, expand_bias, activation="silu")
    expected = reference.depthwise_excite_project_ref(
        expanded, weight, bias, *matrices, project, project_bias, **options, **between
    )
    tensors = (x, expand, expand_bias, weight, bias, project, project_bias)
    got = reference.inverted_residual_ref(*tensors, *matrices, **options, **between)
    torch.testing.assert_close(got, expected, **EXACT)
    expected = reference.depthwise_project_ref(expanded, weight, bias, project, project_bias, **options)
    torch.testing.assert_close(reference.inverted_residual_ref(*tensors, **options, **between), expected, **EXACT)


def test_pointwise_mean_linear() -> None:
    x, weight, bias = randn(2, 6, 5, 7), randn(8, 6, 1, 1, seed=1), randn(8, seed=2)
    matrix, offset = randn(4, 8, seed=3), randn(4, seed=4)
    mean = activated(torch.einsum("nchw,oc->nohw", x, weight[:, :, 0, 0]) + bias[:, None, None], "relu").mean((2, 3))
    got = reference.pointwise_mean_linear_ref(x, weight, bias, matrix, offset, activation="relu")
    torch.testing.assert_close(got, activated(mean @ matrix.T + offset, "hardswish"), **EXACT)


def test_global_mean() -> None:
    x = randn(2, 3, 5, 7)
    torch.testing.assert_close(reference.global_mean_ref(x), x.sum((2, 3)) / 35, **EXACT)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear(activation: Any, has_bias: bool) -> None:
    x, weight, bias = randn(3, 7), randn(9, 7, seed=1), randn(9, seed=2) if has_bias else None
    expected = activated(torch.einsum("nc,oc->no", x, weight) + (0 if bias is None else bias), activation)
    torch.testing.assert_close(reference.linear_ref(x, weight, bias, activation=activation), expected, **EXACT)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activate(activation: Any, inplace: bool) -> None:
    x = torch.linspace(-5, 8, 101, dtype=torch.float64)
    given_x = x.clone()
    got = reference.activate(given_x, activation, inplace=inplace)
    torch.testing.assert_close(got, activated(x, activation), **EXACT)
    assert torch.equal(given_x, got if inplace else x)


CALLS: dict[str, Callable[[Tensor, torch.dtype], Tensor]] = {
    "stem_conv": lambda x, d: reference.stem_conv_ref(x, randn(4, 6, 3, 3).to(d), randn(4).to(d), padding="same"),
    "pointwise_conv_ref": lambda x, d: reference.pointwise_conv_ref(
        x, randn(6, 6, 1, 1).to(d), randn(6).to(d), x, activation="relu"
    ),
    "pointwise_conv": lambda x, d: torch_ops.pointwise_conv(
        x, randn(6, 6, 1, 1).to(d), randn(6).to(d), x, activation="relu"
    ),
    "depthwise_conv": lambda x, d: reference.depthwise_conv_ref(
        x, randn(6, 1, 3, 3).to(d), randn(6).to(d), padding=(1, 1, 1, 1), activation="hardswish"
    ),
    "squeeze_excite": lambda x, d: reference.squeeze_excite_ref(
        x, randn(2, 6).to(d), randn(2).to(d), randn(6, 2).to(d), randn(6).to(d)
    ),
    "global_mean": lambda x, _: reference.global_mean_ref(x),
    "linear": lambda x, d: reference.linear_ref(x[:, :, 0, 0], randn(4, 6).to(d), activation="relu"),
}


@pytest.mark.parametrize("op", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_inputs_stay_and_dtypes_are_kept(op: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    x = randn(2, 6, 8, 7).to(dtype).contiguous(memory_format=layout)
    before = x.clone()
    got = CALLS[op](x, dtype)
    assert got.dtype == dtype
    assert torch.equal(x, before)
