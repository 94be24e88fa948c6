"""Times launch configurations on the GPU at hand, and writes the fastest into its table for `kernels.tuned` or
`cuda.tuned`. Of a block that CUDA kernels fuse, leaving it to Triton's is one more candidate.

    python -m benchmarks.tune --minutes 8 --batches 1 128
    python -m benchmarks.tune --backend cuda --batches 1 128

What the plans of Large and Small ask for at 224x224 is taken in the order of the batches. For each op and sizes the
step that launches it runs with every candidate, whose outputs are compared with the heuristic's before it is timed: a
CUDA graph of some calls in a row, so the inputs of small ones lie in the L2 cache, as a network's do. The table is
written anew after each; a run that was cut goes on where it ended. A table of other versions is begun anew.

--dry-run needs no GPU: tensors without data, invented times, a table that says so.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

import mbv3fast
from benchmarks.asks import CUDA, TRITON, Ask, Bench, Config, Entry, Kind, Recorder, Table
from benchmarks.candidates import Run, fault, graph_microseconds, invented_microseconds, run_step
from mbv3fast.backend import lacks_cuda, lacks_dtype, lacks_kernels
from mbv3fast.ops import OPS
from mbv3fast.ops.target import cuda_target, target_of
from mbv3fast.plan import Plan, Step
from mbv3fast.steps import step_arguments, step_inputs
from mbv3fast.torch_state import cuda_driver_version
from mbv3fast.tuned import slug

SIZE = 224
DRY = "dry run"  # in place of a GPU's name
_GAIN = 0.03  # of the heuristic's time, that another configuration must save
_COMPILERS = min(8, os.cpu_count() or 1)

Given = Callable[[torch.device], dict[str, Any]]  # what a step runs on


def tune(bench: Bench, table: Table, plans: Sequence[Plan], batches: Sequence[int], until: float) -> bool:
    """Put into `table` what `plans` ask for at `batches`; whether all was done before `until` of `time.monotonic`."""
    try:
        for images in batches:
            for plan in plans:
                for step, inputs in step_inputs(plan, (images, 3, SIZE, SIZE)):
                    given = functools.partial(step_arguments, step, inputs, plan.dtype)
                    tune_step(bench, table, step, functools.cache(given), until)
    except TimeoutError:
        return False
    return True


def tune_step(bench: Bench, table: Table, step: Step, given: Given, until: float) -> None:
    """Tune what a step asks for, one after another: how the first is configured may decide what the next is asked."""
    chosen: dict[str, Config] = {}
    while ask := next_ask(bench, step, given(torch.device("meta")), chosen):
        config = table.find(ask)
        if config is None:
            if time.monotonic() >= until:
                raise TimeoutError
            config = _tuned(bench, table, step, given, ask, chosen)
        chosen[ask.op] = config
    torch.cuda.empty_cache()  # the pools of the graphs; nothing without a GPU


def _tuned(bench: Bench, table: Table, step: Step, given: Given, ask: Ask, chosen: Mapping[str, Config]) -> Config:
    """What is measured, and put into the table; the heuristic's where that fails."""
    try:
        entry = measure(bench, step, given(bench.device), ask, chosen)
    except Exception as error:  # too large for the memory, say: others may still be timed
        print(f"failed: {ask}: {error!r}"[:300], flush=True)
        table.failed += 1
        return bench.candidates(ask)[0]
    table.add(ask, entry)
    return entry["config"]


def next_ask(bench: Bench, step: Step, given: Mapping[str, Any], chosen: Mapping[str, Config]) -> Ask | None:
    """The first ask of a step that `chosen` has no answer to."""
    recorder = Recorder(*bench.choose(chosen))
    recorder.kind = bench.kind
    OPS[step.op].run(**given, target=recorder)
    return next((ask for ask in recorder.asks if ask.op not in chosen), None)


def measure(bench: Bench, step: Step, given: Mapping[str, Any], ask: Ask, chosen: Mapping[str, Config]) -> Entry:
    """The fastest configuration for `ask`, the heuristic's unless another is faster by _GAIN, timed a second time.

    chosen: the configurations of what the step launches before.
    """

    def bound(config: Config) -> Run:
        return functools.partial(run_step, step, given, bench.choose({**chosen, ask.op: config}))

    heuristic, *others = bench.candidates(ask)
    wanted = bound(heuristic)()
    with ThreadPoolExecutor(_COMPILERS) as pool:  # most of a first run is the compiler's
        faults = list(pool.map(lambda config: fault(bound(config), wanted), others))
    times = [(bench.timer(bound(heuristic)), heuristic)]
    for config, reason in zip(others, faults, strict=True):
        if reason:
            print(f"dropped: {ask}: {config}: {reason}", flush=True)
        else:
            times.append((bench.timer(bound(config)), config))
    before, (us, config) = times[0][0], min(times, key=lambda timed: timed[0])
    if config is not heuristic:  # the luckiest of many: once more
        before, us = bench.timer(bound(heuristic)), bench.timer(bound(config))
    if us > before * (1 - _GAIN):
        us, config = before, heuristic
    print(f"{ask}: {before:.2f} us" + (f", {us:.2f} with {config}" if config is not heuristic else ""), flush=True)
    return {"config": dict(config), "us": round(us, 3), "heuristic_us": round(before, 3)}


def meta_plans(dtype: torch.dtype, backend: str = "triton") -> list[Plan]:
    """The plans of Large and Small for a backend, without data."""
    with torch.device("meta"):
        models = [build() for build in (mbv3fast.large, mbv3fast.small)]
    return [model.to(dtype).eval().plan(backend) for model in models]


def bench_of(dry: bool, kind: Kind, dtype: torch.dtype) -> Bench:
    device = torch.device("meta" if dry else "cuda")
    target = target_of(device, pdl=True) if kind is TRITON else cuda_target(device, dtype, pdl=True)  # as in an engine
    if dry:
        target = target._replace(triton=True)
    header = {
        "gpu": target.chip or DRY,
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "triton": importlib.metadata.version("triton"),
        "driver": 0 if dry else cuda_driver_version(),
    }
    if kind is TRITON:  # beside what is timed nothing is looked up; of CUDA's plans Triton's launches are
        target = target._replace(chip="")
    return Bench(device, target, header, invented_microseconds if dry else graph_microseconds, kind)


def refusal(options: argparse.Namespace, kind: Kind) -> str:
    """Why nothing can be timed, empty where it can."""
    dtype = getattr(torch, options.dtype)
    if kind is CUDA and lacks_dtype(dtype):
        return f"--dtype: got {options.dtype}: {lacks_dtype(dtype)}"
    if min(options.batches) < 1:
        return f"--batches: got {min(options.batches)}, needs numbers from 1"
    if options.dry_run:
        tables = kind.tuned.TABLES
        inside = options.out is not None and options.out.resolve().is_relative_to(tables.resolve())
        return "" if options.out and not inside else f"--dry-run needs --out, and not in {tables}"
    if not torch.cuda.is_available():
        return "needs a CUDA device; --dry-run does without"
    device = torch.device("cuda")
    return lacks_kernels(device, dtype) or (lacks_cuda(device, dtype) if kind is CUDA else "")


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.tune", description=__doc__, formatter_class=raw)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--backend", choices=("triton", "cuda"), default="triton", help="whose kernels")
    parser.add_argument("--out", type=Path, help="the table; by default the GPU's own, in the package")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), default="float16")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 128, 8, 32], help="most wanted first")
    parser.add_argument("--dry-run", action="store_true")
    options = parser.parse_args(argv)
    until = time.monotonic() + 60 * options.minutes
    kind, dtype = TRITON if options.backend == "triton" else CUDA, getattr(torch, options.dtype)
    reason = refusal(options, kind)
    if reason:
        print(f"tune: {reason}", file=sys.stderr)
        return 1
    torch.manual_seed(0)
    bench = bench_of(options.dry_run, kind, dtype)
    path = options.out or kind.tuned.TABLES / f"{slug(bench.header['gpu'])}.json"
    table = Table(path, bench.header, kind)
    done = tune(bench, table, meta_plans(dtype, kind.backend), options.batches, until)
    ended = "complete" if done else "out of time, run again to go on"
    print(f"{path}: {len(table)} entries, {table.failed} failed, {ended}")
    return 1 if table.failed else 0


if __name__ == "__main__":
    sys.exit(main())
