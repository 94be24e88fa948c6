"""What a launch is for: the chip and the switches that hold when it is made."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Target(NamedTuple):
    """What a launch may count on.

    sms: multiprocessors; where there is no GPU, those of the H100, which plans are counted for. tf32: whether float32
    may be multiplied as it. pdl: whether a kernel may start while its predecessor drains, which asks for weights that
    nothing writes meanwhile.
    """

    sms: int = 132
    tf32: bool = False
    pdl: bool = False
    interpreted: bool = False

    def config(self, op: str, **sizes: int) -> Mapping[str, int]:
        """The launch configuration of `op` for the arguments of its heuristic in `kernels.configs`."""
        from mbv3fast.kernels.configs import HEURISTICS
        from mbv3fast.kernels.interpreted import interpreted

        return interpreted(op, sizes) if self.interpreted else HEURISTICS[op](**sizes, sms=self.sms)


def target_of(device: torch.device, *, pdl: bool = False) -> Target:
    """The target that launches on `device` are for now; `pdl` where the chip has it (sm_90 and later)."""
    if device.type == "cpu":
        return Target(interpreted=True)
    if device.type != "cuda":
        return Target()
    sms, major = _properties(device.index if device.index is not None else torch.cuda.current_device())
    return Target(sms, tf32=torch.backends.cuda.matmul.fp32_precision == "tf32", pdl=pdl and major >= 9)


@functools.cache
def _properties(index: int) -> tuple[int, int]:
    properties = torch.cuda.get_device_properties(index)
    return properties.multi_processor_count, properties.major


def resolve(target: Target | None, like: Tensor) -> Target:
    """`target`, or that of the device of `like`."""
    return target or target_of(like.device)
