"""What a plan must cost on a GPU, and what it may: counted from its launches, never measured.

The floor of a step is the time that no kernel of its kind can beat, the estimate a guess at what ours take.
docs/cost-model.md derives both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil, prod
from typing import TYPE_CHECKING, Any

import torch

from mbv3fast.gpus import Gpu
from mbv3fast.launches import PlannedLaunch, planned_launches
from mbv3fast.ops.spec import Sizes
from mbv3fast.ops.target import Target
from mbv3fast.plan import SPECS, Plan, Shape, Step, StepCost

if TYPE_CHECKING:
    from mbv3fast.kernels._common import Launch
    from mbv3fast.kernels.work import Work

# The estimate's constants; the floor has none.
GAP = 2e-6  # seconds from one launch to the next in a graph, drained and filled
OVERLAPPED_GAP = 1e-6  # where a kernel may start while its predecessor drains: sm_90 and later
TRIP = 0.3e-6  # seconds from a load to its use: some 280 cycles to an L2 cache and back, then addresses and barriers
PORT = 110e9  # bytes a second into one multiprocessor: 64 a clock; its own L1 cache gives twice that
RESIDENT = 4  # programs that a multiprocessor holds at once: of 4 to 8 warps and up to 128 registers a thread
PRODUCTS = 0.6  # of the tensor cores' peak that products of this size reach
SUMS = 0.25  # of the CUDA cores' peak: a multiply-add comes with a load, a conversion and addresses
CACHED = 0.6  # of the L2 cache's bandwidth, whose figures are peaks
OVERLAPS = (9, 0)  # compute capability
_TENSOR_ROWS = 16  # of a block, for tensor cores to multiply it


@dataclass(frozen=True)
class Cost:
    """Of a step. Seconds, bytes, and multiply-adds.

    compulsory: activations read and written by each launch once, partial sums, and weights once. macs: useful ones, of
    which cuda_macs on CUDA cores. floor_seconds: what `bound` takes, the longest of "memory", "tensor cores" and "CUDA
    cores". Of our kernels, else None: programs of the launch with fewest; serial, issued, dots, fmas of all launches,
    and halo, as `kernels.work.Work` says; estimate_seconds: no bound.
    """

    op: str
    name: str
    compulsory: int
    bytes_read: int
    bytes_written: int
    weight_bytes: int
    partial_bytes: int
    launches: int
    macs: int
    cuda_macs: int
    floor_seconds: float
    bound: str
    programs: int | None = None
    serial: int | None = None
    halo: float | None = None
    issued: int | None = None
    dots: int | None = None
    fmas: int | None = None
    estimate_seconds: float | None = None


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
        return [asdict(step) for step in self.steps]


def plan_cost(plan: Plan, shape: Shape, gpu: Gpu) -> PlanCost:
    """The cost of a plan for an input of `shape` [N, C, H, W] on `gpu`, whose configurations its launches have.

    Raises KeyError for a dtype that the GPU's tensor cores don't multiply.
    """
    shapes = plan.shapes(shape)
    launches: dict[str, list[PlannedLaunch]] = {step.name: [] for step in plan.steps}
    if plan.backend == "triton":
        target = Target(gpu.sms, pdl=gpu.capability >= OVERLAPS, chip=gpu.name)
        for planned in planned_launches(plan, shape, target):
            launches[planned.step.name].append(planned)
    costs = []
    for step, counted in zip(plan.steps, plan.costs(shape), strict=True):
        sizes = step.sizes({argument: shapes[name] for argument, name in step.inputs.items()})
        if plan.backend == "triton":
            costs.append(_of_launches(step, sizes, launches[step.name], counted.weight_bytes, plan.dtype, gpu))
        else:
            costs.append(_of_library(step, sizes, counted, plan.dtype, gpu))
    return PlanCost(gpu, tuple(costs))


def call_floor(op: str, sizes: Sizes, moved: int, dtype: torch.dtype, gpu: Gpu) -> tuple[float, str]:
    """Seconds that a call of an op by itself must take, were it one launch that moves `moved` bytes; and its bound."""
    macs = SPECS[op].macs(sizes)
    cuda = macs if dtype is torch.float32 else _window_macs(op, sizes)
    return _longest(_memory_seconds(moved, gpu), macs - cuda, cuda, _tensor_rate(gpu, dtype), gpu)


def _of_library(step: Step, sizes: Sizes, counted: StepCost, dtype: torch.dtype, gpu: Gpu) -> Cost:
    """Of a step that PyTorch's own kernels compute: all that may run on tensor cores does, float32 as TF32."""
    compulsory = counted.bytes_read + counted.bytes_written + counted.weight_bytes + counted.partial_bytes
    cached = min(compulsory, counted.launches * gpu.l2_bytes)  # the most that launches which fit the cache can move
    memory = cached / gpu.l2_bandwidth + (compulsory - cached) / gpu.memory_bandwidth
    cuda = _window_macs(step.op, sizes)
    floor, bound = _longest(memory, counted.macs - cuda, cuda, _tensor_rate(gpu, dtype), gpu)
    return Cost(
        op=step.op,
        name=step.name,
        compulsory=compulsory,
        bytes_read=counted.bytes_read,
        bytes_written=counted.bytes_written,
        weight_bytes=counted.weight_bytes,
        partial_bytes=counted.partial_bytes,
        launches=counted.launches,
        macs=counted.macs,
        cuda_macs=cuda,
        floor_seconds=floor,
        bound=bound,
    )


def _of_launches(
    step: Step, sizes: Sizes, planned: Sequence[PlannedLaunch], weight_bytes: int, dtype: torch.dtype, gpu: Gpu
) -> Cost:
    """Of a step that our kernels compute."""
    from mbv3fast.kernels.work import work

    moved = [_bytes(p) for p in planned]
    done = [work(p.launch) for p in planned]
    macs = SPECS[step.op].macs(sizes)
    exact = dtype is torch.float32  # as a target without TF32 multiplies: on CUDA cores
    cuda = macs if exact else _cuda_macs(step, sizes, [p.launch for p in planned])
    memory = sum(_memory_seconds(size, gpu) for size in moved)
    floor, bound = _longest(memory, macs - cuda, cuda, _tensor_rate(gpu, dtype), gpu)
    return Cost(
        op=step.op,
        name=step.name,
        compulsory=sum(moved),
        bytes_read=sum(p.traffic.read for p in planned),
        bytes_written=sum(p.traffic.written for p in planned),
        weight_bytes=weight_bytes,
        partial_bytes=sum(p.traffic.partial for p in planned),
        launches=len(planned),
        macs=macs,
        cuda_macs=cuda,
        floor_seconds=floor,
        bound=bound,
        programs=min(w.programs for w in done),
        serial=sum(w.serial for w in done),
        halo=prod(w.halo for w in done),  # one launch of a step has a window
        issued=sum(w.issued for w in done),
        dots=sum(w.dots for w in done),
        fmas=sum(w.fmas for w in done),
        estimate_seconds=sum(
            _estimate(w, size, exact, _tensor_rate(gpu, dtype), gpu) for w, size in zip(done, moved, strict=True)
        ),
    )


def _bytes(planned: PlannedLaunch) -> int:
    """Of all tensors that a launch is given, each once."""
    tensors = (*planned.launch.reads.values(), *planned.launch.writes.values())
    return sum(tensor.numel() * tensor.itemsize for tensor in tensors)


def _memory_seconds(size: int, gpu: Gpu) -> float:
    """Of a launch: at the cache's bandwidth where all that it reads and writes may lie there, else at the memory's."""
    return size / (gpu.l2_bandwidth if size <= gpu.l2_bytes else gpu.memory_bandwidth)


def _tensor_rate(gpu: Gpu, dtype: torch.dtype) -> float:
    name = str(dtype).removeprefix("torch.")
    return gpu.tensor_flops["tf32" if name == "float32" else name]


def _longest(memory: float, tensor_macs: int, cuda_macs: int, tensor_rate: float, gpu: Gpu) -> tuple[float, str]:
    seconds = {
        "memory": memory,
        "tensor cores": 2 * tensor_macs / tensor_rate,
        "CUDA cores": 2 * cuda_macs / gpu.fp32_flops,
    }
    bound = max(seconds, key=lambda name: seconds[name])
    return seconds[bound], bound


def _window_macs(op: str, sizes: Sizes) -> int:
    """Of a depthwise convolution, alone or in a block."""
    if not op.startswith("depthwise"):
        return 0
    return prod(sizes[symbol] for symbol in "NPQC") * sizes["k"] ** 2


def _cuda_macs(step: Step, sizes: Sizes, launches: Sequence[Launch]) -> int:
    """Useful multiply-adds that our kernels do on CUDA cores: windows, and what has too few rows for tensor cores."""
    names = {launch.kernel.__name__ for launch in launches}
    if "_stem_conv_kernel" in names:
        return SPECS[step.op].macs(sizes)
    macs = _window_macs(step.op, sizes)
    if "S" in sizes and "_excite_images_kernel" not in names:
        macs += 2 * sizes["N"] * sizes["C"] * sizes["S"]
    for launch in launches:
        if launch.kernel.__name__ == "_linear_kernel" and launch.constants["BLOCK_M"] < _TENSOR_ROWS:
            macs += launch.sizes["rows"] * launch.constants["K"] * launch.constants["N"]
    return macs


def _estimate(work: Work, size: int, exact: bool, tensor_rate: float, gpu: Gpu) -> float:
    """Seconds of a launch of `work` that must move `size` bytes, the gap before it included. No bound."""
    share = ceil(work.programs / gpu.sms)  # programs of the busiest multiprocessor
    waves = ceil(work.programs / (gpu.sms * RESIDENT))
    busiest = share * gpu.sms / work.programs  # times what it would have if all had alike
    from_l2 = work.issued - work.repeated  # what a program reads again is in its L1 cache
    sums, dots = (work.fmas + work.dots, 0) if exact else (work.fmas, work.dots)
    return (OVERLAPPED_GAP if gpu.capability >= OVERLAPS else GAP) + max(
        _memory_seconds(size, gpu),
        from_l2 / (CACHED * gpu.l2_bandwidth),
        from_l2 * busiest / (gpu.sms * PORT),
        work.issued * busiest / (gpu.sms * 2 * PORT),
        2 * dots * busiest / (PRODUCTS * tensor_rate),
        2 * sums * busiest / (SUMS * gpu.fp32_flops),
        waves * work.serial * TRIP,
    )
