"""What is timed, as data that any process makes the same tensors from: a network, one op, or one step of a plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import mbv3fast
from benchmarks.machine import DEVICE
from mbv3fast.cli.options import DTYPES
from mbv3fast.fast import FusedMobileNetV3
from tests.peers import PEERS, trained_state

AT_HAND = torch.device(DEVICE)
_STATES: dict[str, dict[str, Tensor]] = {}  # by variant
_CHUNK = 32  # images at once in float64, which takes memory


class Right(NamedTuple):
    """A case's result in float64, and PyTorch's own in the case's dtype, where they were computed."""

    truth: Tensor
    plain: Tensor


class Case(Protocol):
    """`str(case)` is its name in the tests' ids."""

    dtype: str
    batch: int

    def share(self, folder: Path) -> None:
        """Leave in `folder` what processes would else each make."""

    def adopt(self, folder: Path) -> None:
        """Take what another process shares there."""

    def right(self, device: torch.device) -> Right:
        """What every contender must compute."""

    def facts(self) -> dict[str, Any]:
        """What a results file says of it."""


@dataclass(frozen=True)
class NetworkCase:
    """torchvision's Large or Small with calibrated random weights, on random images [batch, 3, size, size]."""

    variant: str
    dtype: str
    batch: int
    size: int = 224

    def __str__(self) -> str:
        return f"{self.variant}-{self.dtype}-{self.batch}-{self.size}"

    def share(self, folder: Path) -> None:
        save_file(self._state(), folder / f"{self.variant}.safetensors")

    def adopt(self, folder: Path) -> None:
        _STATES[self.variant] = load_file(folder / f"{self.variant}.safetensors")

    def _state(self) -> dict[str, Tensor]:
        if self.variant not in _STATES:
            _STATES[self.variant] = trained_state(f"torchvision {self.variant} 1.0")
        return _STATES[self.variant]

    def network(self, device: torch.device) -> nn.Module:
        """torchvision's, in eval mode."""
        model = PEERS[f"torchvision {self.variant} 1.0"].build()
        model.load_state_dict(self._state())
        return model.to(device, DTYPES[self.dtype]).eval()

    def ours(self, device: torch.device) -> FusedMobileNetV3:
        """The same network from `mbv3fast`, on our kernels where there are any, be they slower than PyTorch's."""
        build = mbv3fast.large if self.variant == "large" else mbv3fast.small
        backend = "triton" if device.type == "cuda" else "auto"
        model = build(weights=self._state(), source="torchvision", backend=backend)
        return model.to(device, DTYPES[self.dtype]).eval()

    def images(self, device: torch.device) -> Tensor:
        shape = (self.batch, 3, self.size, self.size)
        return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, DTYPES[self.dtype])

    def right(self, device: torch.device) -> Right:
        network, x = self.network(device), self.images(device)
        with torch.inference_mode():
            plain = torch.cat([network(part) for part in x.split(_CHUNK)])
            network.double()
            truth = torch.cat([network(part.double()) for part in x.split(_CHUNK)])
        return Right(truth, plain)

    def facts(self) -> dict[str, Any]:
        return {"variant": self.variant, "size": self.size}
