"""The layers that pictures show: blocks of the Large at 224x224, and how their kernels are configured."""

from __future__ import annotations

from typing import NamedTuple

from mbv3fast.config import BlockConfig, network

SIZE = 224
HALF = 2  # bytes of float16
BATCHES = (1, 128)  # few images and many


class Layer(NamedTuple):
    """features.`number`: its block, and the height and width of its input and of its output."""

    number: int
    block: BlockConfig
    size: int
    out: int

    @property
    def name(self) -> str:
        return f"features.{self.number}"


def layer(number: int) -> Layer:
    """A block of the Large."""
    blocks = network("large").blocks
    size = SIZE // 2
    for block in blocks[: number - 1]:
        size //= block.stride
    block = blocks[number - 1]
    return Layer(number, block, size, size // block.stride)
