"""Candidates for a launch: the heuristic's configuration and those a step away from it; what a step runs on, whether
it computes the same with one as with another, and how long it takes.
"""

from __future__ import annotations

import statistics
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import permutations
from math import prod
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mbv3fast.cuda import tiles
from mbv3fast.cuda.launch import Tile
from mbv3fast.kernels.configs import HEURISTICS, Config, excite_project_blocks, power_of_2
from mbv3fast.kernels.tuned import OPTIONAL
from mbv3fast.ops import OPS
from mbv3fast.ops.op import as_tuple
from mbv3fast.ops.target import Target
from mbv3fast.plan import Step
from mbv3fast.timing import graph_seconds

MOST = 16  # of an op: each is compiled
WARPS, STAGES = (2, 4, 8), (2, 3, 4)
_PER_THREAD = 128  # sums that a thread can hold in its registers, beside all else
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 4e-3, torch.bfloat16: 3e-2}  # of the largest output
_ROUNDS = 15  # timed replays

H100 = Target()

Run = Callable[[], tuple[Tensor, ...]]


class Limit(NamedTuple):
    """The least and the most of a block, and the size that it need not exceed once it covers it."""

    least: int
    most: int
    covers: str


_TILE = {"TILE_H": Limit(1, 16, "out_height"), "TILE_W": Limit(2, 16, "out_width")}
LIMITS: dict[str, dict[str, Limit]] = {
    "stem_conv": {"BLOCK_P": Limit(16, 512, "pixels")},
    "pointwise_conv": {
        "BLOCK_M": Limit(16, 256, "rows"),
        "BLOCK_N": Limit(16, 256, "outputs"),
        "BLOCK_K": Limit(16, 128, "inputs"),
    },
    "depthwise_conv": {**_TILE, "BLOCK_C": Limit(16, 256, "channels"), "BLOCK_S": Limit(16, 256, "squeeze")},
    "depthwise_project": {**_TILE, "BLOCK_C": Limit(16, 128, "channels")},
    "squeeze": {
        "BLOCK_P": Limit(16, 256, "pixels"),
        "BLOCK_C": Limit(16, 256, "channels"),
        "BLOCK_S": Limit(16, 64, "squeezed"),
    },
    "excite": {"BLOCK_C": Limit(4, 64, "channels"), "BLOCK_PARTS": Limit(1, 32, "parts")},
    "excite_project": {
        "BLOCK_M": Limit(16, 128, "pixels"),
        "BLOCK_N": Limit(16, 128, "outputs"),
        "BLOCK_K": Limit(16, 128, "inputs"),
        "BLOCK_PARTS": Limit(1, 32, "parts"),
    },
    "excite_images": {
        "BLOCK_M": Limit(16, 64, "images"),
        "BLOCK_C": Limit(16, 128, "channels"),
        "BLOCK_K": Limit(16, 64, "channels"),
    },
    "apply_scale": {"BLOCK_P": Limit(4, 128, "rows"), "BLOCK_C": Limit(16, 512, "channels")},
    "linear": {
        "BLOCK_M": Limit(1, 128, "rows"),
        "BLOCK_N": Limit(4, 128, "outputs"),
        "BLOCK_K": Limit(16, 1024, "inputs"),
    },
}
_HELD = {  # the blocks that span the largest array of a program
    "stem_conv": ("BLOCK_P",),
    "pointwise_conv": ("BLOCK_M", "BLOCK_N"),
    "depthwise_conv": ("TILE_H", "TILE_W", "BLOCK_C"),
    "depthwise_project": ("TILE_H", "TILE_W"),
    "squeeze": ("BLOCK_P", "BLOCK_C"),
    "excite": ("BLOCK_C",),
    "excite_project": ("BLOCK_M", "BLOCK_N"),
    "excite_images": ("BLOCK_M",),
    "apply_scale": ("BLOCK_P", "BLOCK_C"),
    "linear": ("BLOCK_M", "BLOCK_N"),
}


def candidates(op: str, sizes: Mapping[str, int], target: Target = H100) -> list[Config]:
    """At most MOST configurations of `op` for the arguments of its heuristic, the heuristic's first.

    The others halve or double one of its blocks, unroll other taps, have other warps or stages, then give to one block
    what they take from another. An empty one stands for other kernels, in one launch more.
    """
    heuristic = HEURISTICS[op](**sizes, sms=target.sms)
    found = [heuristic]
    if heuristic and op in OPTIONAL:
        found.append({})
    elif op == "excite_project":
        heuristic = excite_project_blocks(**sizes, sms=target.sms)
        found.append(heuristic)
    for change in _changes(op, sizes, heuristic):
        config = {**heuristic, **change}
        if config not in found and fits(op, sizes, config, heuristic):
            found.append(config)
    return found[:MOST]


def tile_candidates(op: str, sizes: Mapping[str, Any], target: Target = H100) -> list[Tile]:
    """All tiles of `op` that are compiled for the arguments of its heuristic, the heuristic's first."""
    heuristic = tiles.HEURISTICS[op](**sizes, sms=target.sms, capability=target.capability)
    return [heuristic, *(tile for tile in tiles.options(op, sizes) if tile != heuristic)]


def fits(op: str, sizes: Mapping[str, int], config: Config, heuristic: Config) -> bool:
    """Whether a program takes such blocks, none wider than of use, and its threads hold what it sums."""
    for block, (least, most, covers) in LIMITS[op].items():
        if not least <= config[block] <= max(heuristic[block], power_of_2(sizes[covers], least, most)):
            return False
    if op == "depthwise_project" and config["TILE_H"] * config["TILE_W"] < 16:  # as few as a tensor core takes
        return False
    if op == "linear" and config["BLOCK_M"] >= 16 > config["BLOCK_N"]:
        return False
    return _held(op, sizes, config) <= _PER_THREAD * 32 * config["num_warps"]


def _changes(op: str, sizes: Mapping[str, int], heuristic: Config) -> Iterator[dict[str, int]]:
    if not heuristic:
        return
    for block in LIMITS[op]:
        yield {block: heuristic[block] * 2}
        yield {block: heuristic[block] // 2}
    for warps in WARPS:
        yield {"num_warps": warps}
    if "num_stages" in heuristic:
        for stages in STAGES:
            yield {"num_stages": stages}
    if "UNROLL" in heuristic:
        for taps in (1, sizes["kernel"], sizes["kernel"] ** 2):
            yield {"UNROLL": taps}
    for less, more in permutations(LIMITS[op], 2):
        yield {less: heuristic[less] // 2, more: heuristic[more] * 2}


def _held(op: str, sizes: Mapping[str, int], config: Config) -> int:
    """Elements of the largest array that a program keeps."""
    if op == "linear" and config["BLOCK_M"] < 16:  # which sums the products of all three blocks
        return prod(config[block] for block in LIMITS[op])
    columns = {"stem_conv": 16, "depthwise_project": power_of_2(sizes.get("outputs", 0), 16, 256)}
    columns["excite_images"] = power_of_2(sizes.get("squeezed", 0), 16, 256)
    return prod(config[block] for block in _HELD[op]) * columns.get(op, 1)


def run_step(step: Step, given: Mapping[str, Any], target: Target) -> tuple[Tensor, ...]:
    """The outputs of a step's kernels."""
    return as_tuple(OPS[step.op].run(**given, target=target))


def fault(run: Run, wanted: tuple[Tensor, ...]) -> str:
    """Why a configuration can't serve, empty where it computes what is wanted."""
    try:
        outputs = run()
        right = all(map(agrees, outputs, wanted))
        for output in outputs:  # whose memory the next may be given: what that doesn't write must not look right
            output.fill_(torch.nan)
    except Exception as error:  # the compiler's, the driver's, whatever: the others can still be timed
        return repr(error)[:200]
    return "" if right else "computes something else"


def agrees(got: Tensor, wanted: Tensor) -> bool:
    """Whether two outputs differ by no more than sums in another order do; of tensors without data, their shapes."""
    if got.shape != wanted.shape or got.dtype != wanted.dtype:
        return False
    return got.is_meta or bool((got - wanted).abs().max() <= _TOLERANCE[got.dtype] * wanted.abs().max())


def graph_microseconds(run: Run) -> float:
    """The median time of a call, among others in a CUDA graph."""
    return statistics.median(graph_seconds(run, _ROUNDS)) * 1e6


def invented_microseconds(run: Run) -> float:
    """A number that follows from the launches of `run`, and means nothing."""
    from mbv3fast.launching import Launch, watch_launches

    launches: list[Launch] = []
    with watch_launches(launches.append):
        run()
    made = [(launch.kernel.__name__, launch.grid, sorted(launch.constants.items())) for launch in launches]
    return 1 + zlib.crc32(repr(made).encode()) % 10_000 / 1000
