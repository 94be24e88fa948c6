"""benchmarks/decode.py: photographs of the sizes asked for, readers that agree, a table of all of them."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import decode


@pytest.mark.parametrize("size", [(341, 256), (1280, 960)])
def test_photographs_have_the_size_that_was_asked_for(size: tuple[int, int]) -> None:
    images = decode.photographs(*size)
    assert len(set(images)) == 2
    for image in images:
        assert Image.open(io.BytesIO(image)).size == size
        assert 0.15 < len(image) / (size[0] * size[1]) < 0.5  # bytes a pixel, also of tiles


def test_readers_give_the_same_image() -> None:
    def black(_: bytes) -> Tensor:
        return torch.zeros(3, 224, 224, dtype=torch.uint8)

    small, large = decode.photographs(500, 375), decode.photographs(1280, 960)
    assert decode.difference(decode.pillow, large) == decode.difference(decode.draft, small) == "0.00"
    assert 0 < float(decode.difference(decode.draft, large)) < 2
    assert float(decode.difference(black, large)) > 50
    assert decode.difference(decode.decoding_alone, large) == ""


def test_a_row_for_each_size_and_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: bytes) -> Tensor:
        raise RuntimeError("no such library. More of that")

    monkeypatch.setattr(decode, "SIZES", ((341, 256),))
    monkeypatch.setattr(decode, "READERS", (decode.pillow, broken))
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in decode.table(rounds=1, at_least=0.001)]
    assert {len(row) for row in rows} == {6}
    assert [row[2] for row in rows[2:]] == ["pillow", "broken", "large, batch 8", "small, batch 8"]
    assert float(rows[2][3]) > 10
    assert rows[3][3] == "no such library"
