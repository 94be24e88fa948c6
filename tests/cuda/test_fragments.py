"""What the emulation's tensor cores compute, entry by entry, and how it rounds.

Where elements of a matrix lie among the lanes' registers is written out here once more, as the PTX ISA has it
("Matrix Fragments for mma.m16n8k16 with floating point type", "for mma.m16n8k8", "ldmatrix").
"""

from __future__ import annotations

import ctypes
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

DTYPES = {torch.float16: 1, torch.bfloat16: 2}
LANES = range(32)


class Place(NamedTuple):
    """Of a register's element: `element` counts a_i, b_i or c_i of a lane."""

    lane: int
    element: int

    @property
    def group(self) -> int:
        return self.lane >> 2

    @property
    def thread_in_group(self) -> int:
        return self.lane % 4


def places(elements: int) -> list[Place]:
    return [Place(lane, element) for lane in LANES for element in range(elements)]


def of_a(place: Place, k: int) -> tuple[int, int]:
    """Row and column of a_i: i < 8 where k is 16, i < 4 where it is 8."""
    i = place.element
    if k == 16:
        row = place.group if 0 <= i < 2 or 4 <= i < 6 else place.group + 8
        return row, place.thread_in_group * 2 + (i & 1) + (0 if i < 4 else 8)
    return place.group if i < 2 else place.group + 8, place.thread_in_group * 2 + (i & 1)


def of_b(place: Place) -> tuple[int, int]:
    """Row and column of b_i: i < 4 where k is 16, i < 2 where it is 8."""
    i = place.element
    return place.thread_in_group * 2 + (i & 1) + (0 if i < 2 else 8), place.group


def of_c(place: Place) -> tuple[int, int]:
    i = place.element
    return place.group if i < 2 else place.group + 8, place.thread_in_group * 2 + (i & 1)


def multiply(kernels: ctypes.CDLL, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """A B + C by one mma: A [16, k] and B [k, 8] in a 16-bit dtype, C [16, 8] in float32."""
    k = a.shape[1]
    a_rows, a_columns = zip(*(of_a(place, k) for place in places(k // 2)), strict=True)
    b_rows, b_columns = zip(*map(of_b, places(k // 4)), strict=True)
    c_rows, c_columns = zip(*map(of_c, places(4)), strict=True)
    registers = a[a_rows, a_columns].contiguous(), b[b_rows, b_columns].contiguous(), c[c_rows, c_columns].contiguous()
    code = kernels.test_mma(k, DTYPES[a.dtype], *(ctypes.c_void_p(tensor.data_ptr()) for tensor in registers))
    assert code == 0, kernels.mbv3fast_error(code)
    result = torch.full_like(c, torch.nan)
    result[c_rows, c_columns] = registers[2]
    return result


def test_every_place_holds_one_element() -> None:
    for k in (8, 16):
        assert len({of_a(place, k) for place in places(k // 2)}) == 16 * k
        assert len({of_b(place) for place in places(k // 4)}) == 8 * k
    assert len({of_c(place) for place in places(4)}) == 16 * 8


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [8, 16])
def test_products_of_one_element(kernels: ctypes.CDLL, k: int, dtype: torch.dtype) -> None:
    """A row of B appears where A has its one element, a column of A where B has."""
    numbers = torch.arange(1.0, 257.0).to(dtype)  # which have no other places' values, and are exact
    a, b, c = numbers[: 16 * k].view(16, k), numbers[: 8 * k].view(k, 8), torch.arange(128.0).view(16, 8) * 1000
    for index in range(16 * k):
        one = torch.zeros(16, k, dtype=dtype)
        one.view(-1)[index] = 1
        assert torch.equal(multiply(kernels, one, b, c), one.float() @ b.float() + c)
    for index in range(8 * k):
        one = torch.zeros(k, 8, dtype=dtype)
        one.view(-1)[index] = 1
        assert torch.equal(multiply(kernels, a, one, c), a.float() @ one.float() + c)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("k", [8, 16])
def test_products_of_integers(kernels: ctypes.CDLL, k: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(k)
    for _ in range(50):
        shapes = (16, k), (k, 8), (16, 8)
        a, b, c = (torch.randint(-128, 129, shape, generator=generator).float() for shape in shapes)
        assert torch.equal(multiply(kernels, a.to(dtype), b.to(dtype), c), a @ b + c)


@pytest.mark.parametrize("matrices", [1, 2, 4])
def test_matrices_are_handed_out(kernels: ctypes.CDLL, matrices: int) -> None:
    """Row r of matrix m is what lane 8 m + r points to; register m of a lane holds two neighbours of row lane / 4."""
    rows = torch.randint(-(2**15), 2**15, (32, 8), dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    registers = torch.zeros(32, matrices, 2, dtype=torch.int16)
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (rows, registers))
    assert kernels.test_ldmatrix(matrices, *pointers) == 0
    for lane in LANES:
        for matrix in range(matrices):
            row, column = 8 * matrix + lane // 4, lane % 4 * 2
            assert torch.equal(registers[lane, matrix], rows[row, column : column + 2])


ALL = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)  # the bits of every 16-bit number


def rounded(kernels: ctypes.CDLL, values: Tensor, dtype: torch.dtype) -> Tensor:
    bits = torch.zeros(values.shape, dtype=torch.int16)
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (values, bits))
    kernels.test_round(DTYPES[dtype], ctypes.c_int64(values.numel()), *pointers)
    return bits.view(dtype)


def assert_same_numbers(got: Tensor, wanted: Tensor) -> None:
    """Equal bits, but that NaN has many."""
    integer = torch.int32 if got.dtype == torch.float32 else torch.int16
    assert torch.equal(got.isnan(), wanted.isnan())
    numbers = ~wanted.isnan()
    assert torch.equal(got.view(integer)[numbers], wanted.view(integer)[numbers])


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_number_as_a_float_and_back(kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
    values = torch.full(ALL.shape, 7.0)
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (ALL, values))
    kernels.test_float(DTYPES[dtype], ctypes.c_int64(ALL.numel()), *pointers)
    assert_same_numbers(values, ALL.view(dtype).float())
    assert_same_numbers(rounded(kernels, values, dtype), ALL.view(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounding(kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
    """Of halfway points between neighbours and what is next to them, subnormals and the largest too; of any bits."""
    finite = ALL.view(dtype).float()
    finite = finite[finite.isfinite()].sort().values
    ties = (finite[1:].double() + finite[:-1].double()).div(2).float()
    up, down = torch.tensor(torch.inf), torch.tensor(-torch.inf)
    beyond = torch.tensor([65519.996, 65520.0, 65536.0, 3.4e38, 3.3961775e38, torch.inf, torch.nan, 0.0, 2.0**-149])
    anything = torch.randint(-(2**31), 2**31, (200_000,), generator=torch.Generator().manual_seed(0))
    values = torch.cat(
        [ties, ties.nextafter(up), ties.nextafter(down), beyond, -beyond, anything.to(torch.int32).view(torch.float32)]
    )
    assert_same_numbers(rounded(kernels, values, dtype), values.to(dtype))
