"""Runs one step of a plan some times, for a profiler to look at its kernels.

ncu --kernel-name regex:^_ python -m benchmarks.gpu.run_step large --batch 1 --index 3
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from benchmarks.contest.step_cases import StepCase
from benchmarks.gpu.options import add_network
from mbv3fast.timing import waiter

CALLS = 5  # the first of which compiles


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.gpu.run_step", description=__doc__, formatter_class=raw)
    add_network(parser)
    parser.add_argument("--index", type=int, required=True, help="of the step in the plan, from 0")
    options = parser.parse_args(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    backend = "triton" if device.type == "cuda" else "torch"
    case = StepCase(options.variant, options.dtype, options.batch, options.size, backend, options.index)
    run = case.run(device)
    with torch.inference_mode():
        for _ in range(CALLS):
            result = run()
        waiter(device)(result)
    print(f"{case}: {CALLS} calls")
    return 0


if __name__ == "__main__":
    sys.exit(main())
