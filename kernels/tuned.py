"""Launch configurations of the Triton kernels that were timed, as `mbv3fast.tuned` has them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from mbv3fast.kernels.configs import HEURISTICS, Config, excite_project_blocks
from mbv3fast.tuned import Family, check_keys, check_number

TABLES = Path(__file__).with_name("tables")
GROWS = {
    "stem_conv": "images",
    "pointwise_conv": "rows",
    "depthwise_conv": "images",
    "depthwise_project": "images",
    "squeeze": "images",
    "excite": "images",
    "excite_project": "images",
    "excite_images": "images",
    "apply_scale": "rows",
    "linear": "rows",
}
OPTIONAL = ("depthwise_project", "excite_project", "excite_images")  # empty where other kernels do it
_ANY_NUMBER = ("UNROLL", "num_stages")  # where a configuration has powers of 2 elsewhere


def tuned(chip: str, op: str, sizes: Mapping[str, int]) -> Config | None:
    """The configuration that was fastest on the GPU named `chip`, None where none was timed there for such sizes.

    sizes: the arguments of the op's heuristic in `kernels.configs`. Raises ValueError for a damaged table.
    """
    return FAMILY.find(TABLES, chip, op, sizes)


def _check(where: str, op: str, sizes: Mapping[str, Any], config: Any) -> None:
    for name, size in sizes.items():
        check_number(f"{where}.sizes.{name}", size, least=0 if name in FAMILY.defaults(op) else 1)
    if op not in OPTIONAL or config != {}:
        check_keys(f"{where}.config", config, _blocks(op, sizes))
    for name, value in config.items():
        check_number(f"{where}.config.{name}", value, least=1)
        if name not in _ANY_NUMBER and value & (value - 1):
            raise ValueError(f"{where}.config.{name} is {value}, needs a power of 2")


def _blocks(op: str, sizes: Mapping[str, int]) -> Collection[str]:
    if op == "excite_images":  # else the heuristic's may be empty
        sizes = {**sizes, "images": 128, "itemsize": 2}
    return excite_project_blocks(**sizes) if op == "excite_project" else HEURISTICS[op](**sizes)


FAMILY = Family(HEURISTICS, GROWS, _check)
