"""The results of `tests.test_ops` from the kernels, in Triton's interpreter, and what else only they can show."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from mbv3fast import ops
from mbv3fast.launching import watch_launches
from tests.op_cases import CASES, FULL, Seen, call, make
from tests.test_activations import (
    test_agrees_with_the_reference_by_every_activation,
    test_extreme_values_are_activated_as_by_pytorch,
    test_extreme_values_pass_a_gate_as_by_pytorch,
)
from tests.test_efficientnet_block import test_a_folded_block_agrees_with_its_modules
from tests.test_ops import (
    test_agrees_with_the_reference,
    test_an_empty_batch_gives_empty_outputs,
    test_any_call_that_the_spec_allows,
    test_depthwise_conv_of_any_geometry,
    test_nan_stays_in_its_image,
    test_stem_conv_of_any_geometry,
    test_strides_are_those_of_channels_last,
)

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1: `make test-kernels`", allow_module_level=True)
pytest.importorskip("triton.runtime.interpreter")

__all__ = [
    "test_a_folded_block_agrees_with_its_modules",
    "test_agrees_with_the_reference",
    "test_agrees_with_the_reference_by_every_activation",
    "test_an_empty_batch_gives_empty_outputs",
    "test_any_call_that_the_spec_allows",
    "test_depthwise_conv_of_any_geometry",
    "test_extreme_values_are_activated_as_by_pytorch",
    "test_extreme_values_pass_a_gate_as_by_pytorch",
    "test_nan_stays_in_its_image",
    "test_stem_conv_of_any_geometry",
    "test_strides_are_those_of_channels_last",
]
# What allocates, copies, or looks at memory in another way; set_ is the interpreter's.
MOVES = {"empty", "empty_strided", "new_empty", "clone", "copy_", "contiguous", "set_"}
MOVES |= {"permute", "view", "as_strided", "slice", "flatten", "unsqueeze", "detach", "alias"}


@pytest.fixture(autouse=True)
def launches() -> Iterator[None]:
    """Every test here must launch a kernel."""
    seen: list[object] = []
    with watch_launches(seen.append):
        yield
    assert seen, "no kernel was launched"


@pytest.mark.parametrize("name", FULL.values())
def test_nothing_but_kernels_computes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = make(name, torch.float16)
    with Seen() as seen:
        call(name, tensors)
    assert seen.names - MOVES == {CASES[name].op}
    monkeypatch.setenv("MBV3FAST_BACKEND", "torch")
    with Seen() as seen:
        call(name, tensors)
    assert len(seen.names - MOVES) > 1


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_strides_of_more_than_32_bits(dim: int) -> None:
    """An image anywhere in 4 GiB, of which hardly a page is touched; a wrapped offset stays within them."""
    strides = [27, 9, 3, 1]
    strides[dim] = 2**30
    memory = torch.empty(2**32 + 128, dtype=torch.uint8)
    x = memory.as_strided((3, 3, 3, 3), strides, storage_offset=2**31)
    x.copy_(torch.arange(81).view(x.shape) + 100)
    weight, bias = make("stem")["weight"], make("stem")["bias"]
    assert torch.equal(ops.stem_conv(x, weight, bias), ops.stem_conv(x.contiguous(), weight, bias))
