"""Whether a plan computes what it must: each step by itself, then the whole; exit code 1 where it doesn't.

    python -m benchmarks.gpu.check_plan large --dtype float16 --batch 8

A process of its own, since a kernel that hangs or faults takes its process along.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch

from benchmarks.contest.cases import NetworkCase
from benchmarks.gpu.options import add_network
from mbv3fast.backend import BACKENDS
from mbv3fast.disagreement import disagreement
from tests.numerics import Error, allowance


def check(case: NetworkCase, device: torch.device, options: argparse.Namespace) -> str:
    """Why the plan must not serve, empty where it may."""
    model = case.ours(device)
    model.backend, model.plan_name, model.cuda_graphs = options.backend, options.plan, not options.eager
    x = case.images(device)
    with torch.inference_mode():
        plan = model.plan()
        print(f"{case} on {device}: {len(plan.steps)} steps for {plan.backend}", flush=True)
        if plan.backend != "torch" and not options.whole:
            reason = disagreement(plan, tuple(x.shape), device)
            if reason:
                return reason
        got = model(x)
        decision = model.explain(x)
    if not decision.fused or decision.backend not in (None, plan.backend):
        return f"is served otherwise: {decision.reason}"
    right = case.right(torch.device("cpu") if options.whole else device)
    error, allowed = Error.of(got.cpu(), right.truth), allowance(right.plain, right.truth)
    print(f"largest error {error.largest:.3g} of {allowed.largest:.3g}, RMS {error.rms:.3g} of {allowed.rms:.3g}")
    return "" if error.within(allowed) else "errs by more than it may"


def main(argv: Sequence[str] | None = None) -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("benchmarks.gpu.check_plan", description=__doc__, formatter_class=raw)
    add_network(parser)
    parser.add_argument("--backend", choices=BACKENDS, default="triton")
    parser.add_argument("--plan", help="its name, where a backend has several")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs, which memory checkers can't follow")
    parser.add_argument("--whole", action="store_true", help="the network alone, its reference on the CPU")
    options = parser.parse_args(argv)
    torch.backends.cudnn.allow_tf32 = False
    case = NetworkCase(options.variant, options.dtype, options.batch, options.size)
    reason = check(case, torch.device(options.device), options)
    print(f"{case}: {reason or 'agrees with its references'}")
    return 1 if reason else 0


if __name__ == "__main__":
    sys.exit(main())
