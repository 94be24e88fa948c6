"""What a launch is for: the chip and the switches that hold when it is made."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mbv3fast.backend import lacks_kernels
from mbv3fast.cuda.launch import Tile
from mbv3fast.cuda.tiles import HEURISTICS
from mbv3fast.cuda.tuned import tuned as tuned_tile
from mbv3fast.torch_state import known_size, tf32_allowed

if TYPE_CHECKING:
    from mbv3fast.kernels.configs import Config


_IMAGES: ContextVar[int | None] = ContextVar("images", default=None)


@contextmanager
def configured_for(images: int) -> Iterator[None]:
    """Within, in this thread, launches that are traced for any batch are configured for one of `images`."""
    token = _IMAGES.set(images)
    try:
        yield
    finally:
        _IMAGES.reset(token)


class UncoveredError(RuntimeError):
    """A launch that no kernel here can do."""


class Target(NamedTuple):
    """What a launch may count on.

    sms: multiprocessors; where there is no GPU, those of the H100, which plans are counted for. tf32: whether float32
    may be multiplied as it. pdl: whether a kernel may start while its predecessor drains, which asks for weights that
    nothing writes meanwhile. chip: the GPU's name, whose table of timed configurations is looked up; empty for none.
    overrides, tiles: configurations of Triton's and of CUDA's kernels, by op, that come before all others, for whoever
    times them. cuda: whether CUDA kernels are preferred, where there is one, on a chip of this compute capability, 90
    for 9.0. triton: whether Triton's can run.
    """

    sms: int = 132
    tf32: bool = False
    pdl: bool = False
    interpreted: bool = False
    chip: str = ""
    overrides: Mapping[str, Config] = MappingProxyType({})
    tiles: Mapping[str, Tile] = MappingProxyType({})
    cuda: bool = False
    capability: int = 90
    triton: bool = True

    def config(self, op: str, **sizes: int) -> Config:
        """The launch configuration of `op` for the arguments of its heuristic in `kernels.configs`; where a size is a
        symbol, for that of the example which is traced, or of `configured_for`.

        Raises UncoveredError where Triton's kernels can't run.
        """
        if not self.triton:
            raise UncoveredError(f"{op}: no CUDA kernel does this, and Triton's can't run here")
        from mbv3fast.kernels import configs
        from mbv3fast.kernels.interpreted import interpreted
        from mbv3fast.kernels.tuned import tuned

        sizes = {name: known_size(size, _IMAGES.get()) for name, size in sizes.items()}
        if op in self.overrides:
            return self.overrides[op]
        if self.interpreted:
            return interpreted(op, sizes)
        timed = tuned(self.chip, op, sizes)
        return configs.HEURISTICS[op](**sizes, sms=self.sms) if timed is None else timed

    def tile(self, op: str, **sizes: Any) -> Tile:
        """How a CUDA launch of `op` is cut into blocks, for the arguments of its heuristic in `cuda.tiles`."""
        if op in self.tiles:
            return self.tiles[op]
        timed = tuned_tile(self.chip, op, sizes)
        return HEURISTICS[op](**sizes, sms=self.sms, capability=self.capability) if timed is None else timed


def target_of(device: torch.device, *, pdl: bool = False) -> Target:
    """The target that launches on `device` are for now; `pdl` where the chip has it (sm_90 and later)."""
    if device.type == "cpu":
        return Target(interpreted=True)
    if device.type != "cuda":
        return Target()
    chip, sms, capability = _properties(device.index if device.index is not None else torch.cuda.current_device())
    return Target(sms, tf32_allowed(), pdl and capability >= 90, chip=chip, capability=capability)


def cuda_target(device: torch.device, dtype: torch.dtype, *, pdl: bool = False) -> Target:
    """The same where CUDA kernels come first, and Triton's serve what they don't, if they take this dtype there."""
    target, emulated = target_of(device, pdl=pdl), device.type == "cpu"
    return target._replace(cuda=True, triton=not lacks_kernels(device, dtype), pdl=target.pdl or (pdl and emulated))


@functools.cache
def _properties(index: int) -> tuple[str, int, int]:
    properties = torch.cuda.get_device_properties(index)
    return properties.name, properties.multi_processor_count, 10 * properties.major + properties.minor


def resolve(target: Target | None, like: Tensor) -> Target:
    """`target`, or that of the device of `like`."""
    return target or target_of(like.device)
