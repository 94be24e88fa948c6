"""Weights as the network's kernel reads them: chunks, each the image of what lies in shared memory, one behind another.

Their sizes are known before they are made, so that ways to cut a network can be compared without its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mbv3fast.cluster.table import Chunk

Pieces = Sequence[Tensor]  # of a chunk, one behind another: matrices, and vectors that are biases


def pitch_of(columns: int) -> int:
    """Of rows in shared memory: an odd number of 16-byte chunks, as in csrc/tensor.cuh."""
    return (-(-columns // 8) | 1) * 8


def aligned(size: int) -> int:
    return -(-size // 16) * 16


def in_eights(count: int) -> int:
    """Numbers that are read eight at a time, the last of them zeros."""
    return -(-count // 8) * 8


def matrix_bytes(rows: int, columns: int) -> int:
    """Of a matrix for tensor cores and a bias for each of its rows."""
    return rows * (2 * pitch_of(columns) + 4)


def linear_bytes(rows: int, columns: int) -> int:
    """Of a matrix for CUDA cores and a bias for each of its rows, as in csrc/network_squeeze.cuh."""
    return aligned(2 * rows * columns) + aligned(4 * rows)


def padded(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """With zeros behind its rows and columns; vectors have columns alone."""
    missing = columns - matrix.shape[-1]
    if matrix.dim() == 1:
        return F.pad(matrix, (0, missing))
    return F.pad(matrix, (0, missing, 0, rows - matrix.shape[0]))


def pitched(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """A matrix for tensor cores: [rows, pitch_of(columns)]."""
    return padded(matrix, rows, pitch_of(columns))


class Chunks:
    """Chunks in the order in which the kernel reads them: a table, and what makes the weights."""

    def __init__(self) -> None:
        self.table: list[Chunk] = []
        self._makers: list[Callable[[], Sequence[Pieces]]] = []
        self._size = 0

    def add(self, size: int, copies: int, make: Callable[[], Sequence[Pieces]]) -> None:
        """A chunk of `size` bytes in so many copies, a power of 2, of which block r takes the r-th, modulo all."""
        size = aligned(size)
        self.table.append(Chunk(self._size, size, copies))
        self._makers.append(make)
        self._size += size * copies

    @property
    def largest(self) -> int:
        return max(chunk.bytes for chunk in self.table)

    def weights(self, dtype: torch.dtype) -> Tensor:
        """All chunks, bytes: matrices in `dtype`, vectors in float32."""
        weights = torch.cat([_image(pieces, dtype) for make in self._makers for pieces in make()])
        if len(weights) != self._size:
            raise AssertionError(f"chunks have {len(weights)} bytes, {self._size} were planned")
        return weights


def _image(pieces: Pieces, dtype: torch.dtype) -> Tensor:
    """Each piece in its dtype, behind the others at a multiple of 16 bytes."""
    images = [piece.to(torch.float32 if piece.dim() == 1 else dtype).contiguous().view(-1) for piece in pieces]
    return torch.cat([F.pad(image.view(torch.uint8), (0, -image.nbytes % 16)) for image in images])
