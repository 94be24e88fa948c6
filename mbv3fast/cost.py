"""What a plan must cost on a GPU, and what it may: counted from its launches, never measured.

The floor of a step is the least time for what the plan has it do: its launches' bytes, its multiply-adds on the units
named here. The estimate is a guess at what ours take. docs/cost-model.md derives both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any, NamedTuple

import torch

from mbv3fast.cuda.launch import Kernel
from mbv3fast.cuda.work import work as cuda_work
from mbv3fast.gpus import Gpu
from mbv3fast.launches import moved, planned_launches
from mbv3fast.launching import Launch, Work
from mbv3fast.ops.spec import Sizes
from mbv3fast.ops.target import Target
from mbv3fast.plan import SPECS, Plan, Shape, StepCost

# The estimate's constants, beside those that the heuristics of `kernels.configs` share; the floor has none.
TRIP = 0.3e-6  # seconds from a load to its use: some 280 cycles to an L2 cache and back, then addresses and barriers
WARPS, PROGRAMS = 64, 16  # that a multiprocessor holds at once, at most
PRODUCTS = 0.6  # of the tensor cores' rate that products of this size reach
SUMS = 0.25  # of the CUDA cores' rate: a multiply-add comes with a load, a conversion and addresses
CACHED = 0.6  # of the L2 cache's bandwidth, whose figures are bounds
OVERLAPS = (9, 0)  # compute capability
_TENSOR_ROWS = 16  # of a block, for tensor cores to multiply it


class Floors(NamedTuple):
    """Seconds, and what takes them: "memory", "tensor cores" or "CUDA cores". cold: with nothing in the L2 cache that
    the step reads, else with as much as it holds.
    """

    floor_seconds: float
    bound: str
    cold_floor_seconds: float
    cold_bound: str


@dataclass(frozen=True)
class Cost(StepCost):
    """Of a step. Seconds, bytes, and multiply-adds.

    compulsory: what each launch reads and writes, each tensor once, weights too. streamed_seconds: that at the memory's
    bandwidth, which caches may beat. floor_seconds, bound, cold_floor_seconds, cold_bound: as in Floors. cuda_macs:
    useful ones that run on CUDA cores. Of our kernels, else None: programs of the launch with fewest; serial, issued,
    dots, fmas of all launches, and halo, as `kernels.work.Work` says; estimate_seconds: no bound.
    """

    compulsory: int
    cuda_macs: int
    streamed_seconds: float
    floor_seconds: float
    bound: str
    cold_floor_seconds: float
    cold_bound: str
    programs: int | None = None
    serial: int | None = None
    halo: float | None = None
    issued: int | None = None
    dots: int | None = None
    fmas: int | None = None
    estimate_seconds: float | None = None

    @property
    def floors(self) -> Floors:
        return Floors(self.floor_seconds, self.bound, self.cold_floor_seconds, self.cold_bound)


@dataclass(frozen=True)
class PlanCost:
    """Of every step of a plan on a GPU."""

    gpu: Gpu
    steps: tuple[Cost, ...]

    def total(self, field: str) -> Any:
        """The sum of a field over the steps; None where a step lacks it."""
        values = [getattr(step, field) for step in self.steps]
        return None if None in values else sum(values)

    def to_dict(self) -> list[dict[str, Any]]:
        """A JSON-able form of the steps."""
        return [step.to_dict() for step in self.steps]


def plan_cost(plan: Plan, shape: Shape, gpu: Gpu, *, tf32: bool = False) -> PlanCost:
    """The cost of a plan for an input of `shape` [N, C, H, W] on `gpu`, whose configurations its launches have.

    tf32: whether our kernels may multiply float32 as it, as PyTorch's switch says; a library always may. Raises
    KeyError for a dtype that the GPU's tensor cores don't multiply, ValueError for the network in one launch.
    """
    shapes, ours = plan.shapes(shape), plan.backend != "torch"
    target = gpu_target(plan, gpu, tf32=tf32)
    rates = _Rates.of(plan.dtype, tf32 or not ours, gpu)
    launches: dict[str, list[Launch]] = {step.name: [] for step in plan.steps}
    for planned in planned_launches(plan, shape, target) if ours else ():
        launches[planned.step.name].append(planned.launch)
    costs = []
    for step, counted in zip(plan.steps, plan.costs(shape, target), strict=True):
        sizes = step.sizes(step.input_shapes(shapes))
        if ours:
            costs.append(_of_launches(counted, sizes, launches[step.name], rates, gpu))
        else:
            inputs = sum(prod(shapes[name]) for name in set(step.inputs.values())) * plan.dtype.itemsize
            costs.append(_of_library(counted, sizes, inputs, rates, gpu))
    return PlanCost(gpu, tuple(costs))


def gpu_target(plan: Plan, gpu: Gpu, *, tf32: bool = False) -> Target:
    """What the launches of a plan would be for on `gpu`."""
    pdl = gpu.capability >= OVERLAPS
    return plan.target._replace(sms=gpu.sms, tf32=tf32, pdl=pdl, chip=gpu.name, capability=gpu.sm)


def call_floor(
    op: str, sizes: Sizes, read: int, written: int, dtype: torch.dtype, gpu: Gpu, *, tf32: bool = False
) -> Floors:
    """Of a call of an op by itself, were it one launch that reads and writes so many bytes."""
    warm, cold = (gpu.memory_seconds(read, written, fresh=fresh) for fresh in (0, read))
    return _floors(op, sizes, warm, cold, _Rates.of(dtype, tf32, gpu))


class _Rates(NamedTuple):
    """Operations a second of what may multiply. exact: float32 is for CUDA cores alone."""

    tensor: float
    cuda: float
    exact: bool

    @classmethod
    def of(cls, dtype: torch.dtype, tf32: bool, gpu: Gpu) -> _Rates:
        if dtype is torch.float32:
            return cls(gpu.tensor_flops["tf32"], gpu.fp32_flops, not tf32)
        return cls(gpu.tensor_flops[str(dtype).removeprefix("torch.")], gpu.half_flops, False)


def _floors(op: str, sizes: Sizes, warm: float, cold: float, rates: _Rates) -> Floors:
    """`warm` and `cold`: the memory's seconds. Windows are for CUDA cores; all else tensor cores could multiply."""
    macs = SPECS[op].macs(sizes)
    cuda = macs if rates.exact else _window_macs(op, sizes)
    arithmetic = {"tensor cores": 2 * (macs - cuda) / rates.tensor, "CUDA cores": 2 * cuda / rates.cuda}

    def longest(memory: float) -> tuple[float, str]:
        return max((seconds, bound) for bound, seconds in {"memory": memory, **arithmetic}.items())

    return Floors(*longest(warm), *longest(cold))


def _of_library(counted: StepCost, sizes: Sizes, inputs: int, rates: _Rates, gpu: Gpu) -> Cost:
    """Of a step that PyTorch's own kernels compute, whose launches are only counted. inputs: bytes, each value once."""
    read, written = counted.bytes_read + counted.weight_bytes, counted.bytes_written
    fresh, launches = inputs + counted.weight_bytes, counted.launches
    warm = gpu.memory_seconds(read, written, launches=launches)
    cold = gpu.memory_seconds(read, written, fresh=fresh, launches=launches)
    return Cost(
        **vars(counted),
        compulsory=read + written,
        cuda_macs=_window_macs(counted.op, sizes),
        streamed_seconds=(read + written) / gpu.memory_bandwidth,
        **_floors(counted.op, sizes, warm, cold, rates)._asdict(),
    )


def _of_launches(counted: StepCost, sizes: Sizes, launches: Sequence[Launch], rates: _Rates, gpu: Gpu) -> Cost:
    """Of a step that our kernels compute."""
    moves, done = moved(launches), [_work(launch) for launch in launches]
    compulsory = sum(move.all for move in moves)
    warm = sum(gpu.memory_seconds(move.read, move.written) for move in moves)
    cold = sum(gpu.memory_seconds(move.read, move.written, fresh=move.fresh) for move in moves)
    estimates = (
        _estimate(w, move.all, launch.constants["num_warps"], rates, gpu)
        for w, move, launch in zip(done, moves, launches, strict=True)
    )
    return Cost(
        **vars(counted),
        compulsory=compulsory,
        cuda_macs=counted.macs if rates.exact else _cuda_macs(counted, sizes, launches),
        streamed_seconds=compulsory / gpu.memory_bandwidth,
        **_floors(counted.op, sizes, warm, cold, rates)._asdict(),
        programs=min(w.programs for w in done),
        serial=sum(w.serial for w in done),
        halo=prod(w.halo for w in done),  # one launch of a step has a window
        issued=sum(w.issued for w in done),
        dots=sum(w.dots for w in done),
        fmas=sum(w.fmas for w in done),
        estimate_seconds=sum(estimates),
    )


def _work(launch: Launch) -> Work:
    if isinstance(launch.kernel, Kernel):
        return cuda_work(launch)
    from mbv3fast.kernels.work import work

    return work(launch)


def _window_macs(op: str, sizes: Sizes) -> int:
    """Of a depthwise convolution, alone or in a block."""
    if "k" not in sizes or op == "stem_conv":
        return 0
    return prod(sizes[symbol] for symbol in "NPQ") * _channels(sizes) * sizes["k"] ** 2


def _channels(sizes: Sizes) -> int:
    """Of the depthwise part."""
    return sizes.get("E", sizes["C"])


def _cuda_macs(counted: StepCost, sizes: Sizes, launches: Sequence[Launch]) -> int:
    """Useful multiply-adds that our kernels do on CUDA cores: windows, and what has too few rows for tensor cores."""
    names = {launch.kernel.__name__ for launch in launches}
    if "_stem_conv_kernel" in names:
        return counted.macs
    macs = _window_macs(counted.op, sizes)
    if "S" in sizes and "_excite_images_kernel" not in names:
        macs += 2 * sizes["N"] * _channels(sizes) * sizes["S"]
    for launch in launches:
        if launch.kernel.__name__ == "_linear_kernel" and launch.constants["BLOCK_M"] < _TENSOR_ROWS:
            macs += launch.sizes["rows"] * launch.constants["K"] * launch.constants["N"]
    return macs


def _estimate(work: Work, size: int, num_warps: int, rates: _Rates, gpu: Gpu) -> float:
    """Seconds of a launch of `work` that must move `size` bytes, the gap before it included. No bound."""
    from mbv3fast.kernels import configs

    resident = max(1, min(PROGRAMS, WARPS // num_warps))
    waves = ceil(work.programs / (gpu.sms * resident))
    share = ceil(work.programs / gpu.sms)  # programs of the busiest multiprocessor
    busiest = share * gpu.sms / work.programs  # times what it would have if all had alike
    from_l2 = work.issued - work.repeated  # what a program reads again is in its L1 cache
    sums, dots = (work.fmas + work.dots, 0) if rates.exact else (work.fmas, work.dots)
    return (configs.OVERLAPPED_GAP if gpu.capability >= OVERLAPS else configs.GAP) + max(
        size / (gpu.l2_bandwidth if size <= gpu.l2_bytes else gpu.memory_bandwidth),
        from_l2 / (CACHED * gpu.l2_bandwidth),
        from_l2 * busiest / (gpu.sms * configs.PORT),
        work.issued * busiest / (gpu.sms * 2 * configs.PORT),
        2 * dots * busiest / (PRODUCTS * rates.tensor),
        2 * sums * busiest / (SUMS * gpu.fp32_flops),
        waves * work.serial * TRIP,
    )
