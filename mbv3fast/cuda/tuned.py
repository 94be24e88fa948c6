"""Tiles of the CUDA kernels that were timed, as `mbv3fast.tuned` has them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mbv3fast.cuda.launch import Tile
from mbv3fast.cuda.tiles import HEURISTICS, options
from mbv3fast.tuned import Family, check_number

TABLES = Path(__file__).with_name("tables")
_OTHERS = {  # than numbers
    "activation": (None, "relu", "hardswish"),
    "expands": (False, True),
    "others": (False, True),
    "scaled": (False, True),
}
_MOST = 1 << 20
GROWS = {"inverted_residual": "images", "pointwise_conv": "images", "excite": "images"}


def tuned(chip: str, op: str, sizes: Mapping[str, Any]) -> Tile | None:
    """The tile that was fastest on the GPU named `chip`, None where none was timed there for such sizes.

    sizes: the arguments of the op's heuristic in `cuda.tiles`. Raises ValueError for a damaged table.
    """
    return FAMILY.find(TABLES, chip, op, sizes)


def _check(where: str, op: str, sizes: Mapping[str, Any], config: Any) -> None:
    for name, size in sizes.items():
        if name in _OTHERS:
            if size not in _OTHERS[name] or type(size) not in map(type, _OTHERS[name]):
                raise ValueError(f"{where}.sizes.{name} is {size!r}, needs one of {_OTHERS[name]}")
        else:
            check_number(f"{where}.sizes.{name}", size, least=0 if name == "outputs" else 1)
            if size > _MOST:
                raise ValueError(f"{where}.sizes.{name} is {size}, needs no more than {_MOST}")
    whole = isinstance(config, dict) and all(type(value) is int for value in config.values())
    if not whole or config not in options(op, sizes):
        raise ValueError(f"{where}.config is {config!r}, which is not compiled for such sizes")


FAMILY = Family(HEURISTICS, GROWS, _check)
