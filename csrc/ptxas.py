"""What ptxas says of kernels (`--ptxas-options=-v`), as rows of a table. Imports the standard library alone.

By itself it prints the table of docs/cuda-kernels.md: `python csrc/ptxas.py build/csrc/cuda/ptxas/*.log`.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_ENTRY = re.compile(r"ptxas info\s*: Compiling entry function '(\w+)' for 'sm_(\w+)'")
_SPILLS = re.compile(r"\s+\d+ bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"ptxas info\s*: Used (\d+) registers")
_SHARED = re.compile(r"\b(\d+) bytes smem")
_NAMELESS = re.compile(r"(\(anonymous namespace\)|<unnamed>|_GLOBAL__N__\w+?)::")  # the last has a hash of the source


class Usage(NamedTuple):
    """Of a kernel on an architecture ("90"): a thread's registers, and the bytes that it spills, in functions that are
    called too; the bytes of shared memory that a block has before a launch adds to them.
    """

    kernel: str
    architecture: str
    registers: int = 0
    spill_stores: int = 0
    spill_loads: int = 0
    shared: int = 0


def parse_log(log: str) -> list[Usage]:
    """The kernels of a log, in its order, by their mangled names."""
    rows: list[Usage] = []
    for line in log.splitlines():
        if entry := _ENTRY.match(line):
            rows.append(Usage(entry[1], entry[2]))
        elif rows and (spills := _SPILLS.match(line)):  # of the kernel, or of a function that it calls
            stores, loads = rows[-1].spill_stores + int(spills[1]), rows[-1].spill_loads + int(spills[2])
            rows[-1] = rows[-1]._replace(spill_stores=stores, spill_loads=loads)
        elif rows and (used := _USED.match(line)):
            shared = _SHARED.search(line)
            rows[-1] = rows[-1]._replace(registers=int(used[1]), shared=int(shared[1]) if shared else 0)
    return rows


def demangled(rows: Iterable[Usage]) -> list[Usage]:
    """The same rows with readable names, as far as cu++filt or c++filt is there: "name<float, 3>"."""
    rows = list(rows)
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None or not rows:
        return rows
    names = "\n".join(row.kernel for row in rows)
    said = subprocess.run([tool], input=names, capture_output=True, text=True, check=True)
    return [row._replace(kernel=_short(name)) for row, name in zip(rows, said.stdout.splitlines(), strict=True)]


def _short(name: str) -> str:
    """Without what all kernels have: the return type, our namespace, nameless ones, the parameters."""
    name = _NAMELESS.sub("", name).replace("mbv3fast::", "").removeprefix("void ")
    depth = 0
    for place, letter in enumerate(name):
        depth += (letter == "<") - (letter == ">")
        if letter == "(" and depth == 0:
            return name[:place]
    return name


def table(rows: Iterable[Usage]) -> str:
    """Markdown: a line a kernel, a column an architecture; registers of a thread, and the bytes that it spills."""
    kernels: dict[str, dict[str, str]] = {}
    for row in rows:
        spilled = f" ({row.spill_stores} B spilled)" if row.spill_stores else ""
        kernels.setdefault(f"`{row.kernel}`", {})[row.architecture] = f"{row.registers}{spilled}"
    names = sorted({name for columns in kernels.values() for name in columns}, key=lambda name: int(name.rstrip("a")))
    lines = [["kernel", *(f"sm_{name}" for name in names)], ["---", *["---:"] * len(names)]]
    lines += [[kernel, *(columns.get(name, "-") for name in names)] for kernel, columns in sorted(kernels.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table(demangled(row for log in sys.argv[1:] for row in parse_log(Path(log).read_text(encoding="utf-8")))))
