"""Images as bytes, in either layout, are normalised as the model's transforms do it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import mbv3fast
from mbv3fast import Preprocess
from tests.networks import calibrated_features, calibrated_large
from tests.numerics import Network, tensors

SUBJECTS = {"logits": calibrated_large, "features": calibrated_features}


def pixels(channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (2, channels, 40, 52), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def by_hand(x: Tensor, preprocess: Preprocess, dtype: torch.dtype) -> Tensor:
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (preprocess.mean, preprocess.std))
    return ((x.double() / 255 - mean) / std).to(dtype)


@pytest.mark.parametrize("subject", SUBJECTS)
@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("fused", [False, True])
def test_bytes_give_what_their_floats_give(subject: str, layout: str, dtype: torch.dtype, fused: bool) -> None:
    model: Network = copy.deepcopy(SUBJECTS[subject]()).to(dtype)
    model.preprocess = Preprocess(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    x = pixels()
    expected = by_hand(x, model.preprocess, dtype)
    given = {
        "NCHW": x,
        "NHWC": x.permute(0, 2, 3, 1).contiguous(),
        "channels_last": x.contiguous(memory_format=torch.channels_last),
    }[layout]
    with torch.inference_mode(fused):
        assert model.explain(given).fused is fused
        for got, wanted in zip(tensors(model(given)), tensors(model(expected)), strict=True):
            assert got.dtype == dtype
            tolerance = (2e-2 if dtype is torch.float16 else 1e-5) * wanted.abs().max().item()
            torch.testing.assert_close(got, wanted, rtol=0, atol=tolerance)


def test_a_new_preprocessing_counts_at_once() -> None:
    model = copy.deepcopy(calibrated_large())
    x = pixels()
    with torch.inference_mode():
        before = model(x)
        model.preprocess = Preprocess(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
        torch.testing.assert_close(model(x), model(by_hand(x, model.preprocess, torch.float32)), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(model(x), before, rtol=1e-2)


def test_a_square_of_as_many_columns_as_channels_is_channels_first() -> None:
    model = mbv3fast.small(in_chans=40).eval()
    x = torch.randint(0, 256, (1, 40, 40, 40), dtype=torch.uint8)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model(by_hand(x, model.preprocess, torch.float32)), rtol=1e-4, atol=1e-4)
