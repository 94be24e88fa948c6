"""The launches that plans and ops make, by name and without a GPU: tensors without data, configured for the H100."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

import mbv3fast
from mbv3fast.cli.kernels import planned_launches
from mbv3fast.ops import OPS
from mbv3fast.plan import Plan
from mbv3fast.tables import Variant
from tests.offline.compiling import Launch, binary, watch_launches

HALF = torch.float16
VARIANTS: tuple[Variant, ...] = ("large", "small")
SIZE = 224
Launches = dict[str, Launch]


@cache
def plan(variant: Variant, dtype: torch.dtype = HALF) -> Plan:
    """Of our kernels."""
    with torch.device("meta"):
        model = getattr(mbv3fast, variant)(backend="triton")
    return model.to(dtype).eval().plan()


def plan_launches(variant: Variant, images: int, dtype: torch.dtype = HALF, size: int = SIZE) -> Launches:
    """Of a forward, named after network, batch, step and kernel."""
    planned = planned_launches(plan(variant, dtype), (images, 3, size, size))
    kind = "" if dtype is HALF else f" {str(dtype).removeprefix('torch.')}"
    return _named(f"{variant}{kind} x{images}", ((p.step.name, p.launch) for p in planned))


def bytes_launches(images: int) -> Launches:
    """Of the stem on images as bytes, which it normalises."""
    stem = plan("large").steps[0]
    x = torch.empty(images, 3, SIZE, SIZE, dtype=torch.uint8, device="meta")
    factors = {name: torch.empty(3, device="meta") for name in ("factor", "shift")}
    launches = _dry_run(stem.op, {"x": x, **stem.tensors, **factors}, stem.options)
    return _named(f"bytes x{images}", ((stem.name, launch) for launch in launches))


def op_launches(op: str, shapes: dict[str, tuple[int, ...]], **options: Any) -> Launches:
    """Of an op for arguments of these shapes; its biases are of its dtype, which a plan's are not."""
    dtypes = {arg.name: torch.float32 if arg.kind == "float32" else HALF for arg in OPS[op].spec.args}
    tensors = {name: torch.empty(shape, dtype=dtypes[name], device="meta") for name, shape in shapes.items()}
    title = "x".join(map(str, shapes["x"]))
    return _named(f"op {title}", ((op, launch) for launch in _dry_run(op, tensors, options)))


def squeeze_excite_launches(images: int, channels: int = 960, squeezed: int = 240, **options: str) -> Launches:
    """Of the op alone, which no plan has."""
    shapes = {"x": (images, channels, 7, 7), "fc1_weight": (squeezed, channels), "fc1_bias": (squeezed,)}
    shapes |= {"fc2_weight": (channels, squeezed), "fc2_bias": (channels,)}
    return op_launches("squeeze_excite", shapes, **{"activation": "relu", **options})


def distinct(launches: Iterable[Launches]) -> Launches:
    """Of those that share a binary, the first."""
    found: dict[Any, tuple[str, Launch]] = {}
    for named in launches:
        for name, launch in named.items():
            found.setdefault(binary(launch), (name, launch))
    names = dict(found.values())
    assert len(names) == len(found), "two launches have one name"
    return names


def _dry_run(op: str, tensors: dict[str, Tensor], options: Any) -> list[Launch]:
    seen: list[Launch] = []
    with watch_launches(seen.append):
        OPS[op].run(**tensors, **options)
    return seen


def _named(prefix: str, launches: Iterable[tuple[str, Launch]]) -> Launches:
    return {f"{prefix}: {step} {launch.kernel.__name__}": launch for step, launch in launches}
