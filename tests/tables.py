"""Tables of timed configurations, and what steps ask of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.asks import Ask, Recorder
from benchmarks.tune import meta_plans
from mbv3fast.kernels.configs import Config
from mbv3fast.kernels.tuned import FAMILY
from mbv3fast.ops import OPS
from mbv3fast.ops.target import Target
from mbv3fast.steps import step_arguments, step_inputs

CHIP = "NVIDIA H100 80GB HBM3"
HEADER = {"gpu": CHIP, "date": "2026-01-01", "torch": "2.13.0", "triton": "3.7.1", "driver": 13000}
PRODUCT = FAMILY.complete("pointwise_conv", {"rows": 100, "outputs": 40, "inputs": 32, "itemsize": 2})
NEVER = float("inf")
META, CPU = torch.device("meta"), torch.device("cpu")


def product(**changes: int) -> Config:
    """A configuration that no heuristic chooses for PRODUCT."""
    return {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 2, "num_stages": 2, **changes}


def entry(config: Config | None = None, **sizes: int) -> dict[str, Any]:
    config = product() if config is None else config
    return {"sizes": {**PRODUCT, **sizes}, "config": config, "us": 1.0, "heuristic_us": 2}


def write(folder: Path, ops: Any, **header: Any) -> Path:
    path = folder / "nvidia-h100-80gb-hbm3.json"
    path.write_text(json.dumps({**HEADER, **header, "ops": ops}), encoding="utf-8")
    return path


def planned_asks(images: int, dtype: torch.dtype, target: Target) -> list[Ask]:
    """What the steps of the plans ask `target`."""
    asks = []
    for plan in meta_plans(dtype):
        for step, inputs in step_inputs(plan, (images, 3, 224, 224)):
            recorder = Recorder(*target)
            OPS[step.op].run(**step_arguments(step, inputs, plan.dtype, META), target=recorder)
            asks += recorder.asks
    return asks
