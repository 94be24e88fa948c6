"""What steps ask about launch configurations, what is timed for an answer, and the table that has it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch

from benchmarks.candidates import Run, candidates, tile_candidates
from mbv3fast.atomic import replacing
from mbv3fast.cuda import tuned as cuda_tuned
from mbv3fast.kernels import tuned as triton_tuned
from mbv3fast.ops.target import Target
from mbv3fast.tuned import HEADER

Config = Mapping[str, Any]  # or tile
Entry = dict[str, Any]  # of a table


class Kind(NamedTuple):
    """Whose configurations are timed: the backend of the plans, where the tables are, candidates for an op and sizes,
    and the method of `Target` that is asked.
    """

    backend: str
    tuned: ModuleType
    candidates: Callable[..., list[Config]]
    asked: str


TRITON = Kind("triton", triton_tuned, candidates, "config")
CUDA = Kind("cuda", cuda_tuned, tile_candidates, "tile")


class Ask(NamedTuple):
    """What a step asks a target."""

    op: str
    sizes: dict[str, int]

    def __str__(self) -> str:
        return f"{self.op} {' '.join(f'{name}={size}' for name, size in self.sizes.items())}"


class Recorder(Target):
    """A target that keeps what it is asked, of a `kind`."""

    kind = TRITON

    def __init__(self, *_: Any) -> None:  # which the tuple has
        self.asks: list[Ask] = []

    def config(self, op: str, **sizes: int) -> Config:
        self._keep("config", op, sizes)
        return super().config(op, **sizes)

    def tile(self, op: str, **sizes: Any) -> Config:
        self._keep("tile", op, sizes)
        return super().tile(op, **sizes)

    def _keep(self, asked: str, op: str, sizes: Mapping[str, Any]) -> None:
        if asked == self.kind.asked:
            self.asks.append(Ask(op, self.kind.tuned.FAMILY.complete(op, sizes)))


class Bench(NamedTuple):
    """Where steps run, for what, how a table names it, the timer (microseconds of a call), and what is timed."""

    device: torch.device
    target: Target
    header: dict[str, Any]
    timer: Callable[[Run], float]
    kind: Kind = TRITON

    def choose(self, chosen: Mapping[str, Config]) -> Target:
        """A target by which launches have these configurations."""
        return self.target._replace(tiles=chosen) if self.kind is CUDA else self.target._replace(overrides=chosen)

    def candidates(self, ask: Ask) -> list[Config]:
        return self.kind.candidates(ask.op, ask.sizes, self.target)


class Table:
    """A table in a file, which is written anew with each entry."""

    def __init__(self, path: Path, header: Mapping[str, Any], kind: Kind = TRITON) -> None:
        self._path, self._header = path, header
        self._ops: dict[str, list[Entry]] = {}
        self.failed = 0  # asks without an entry, since the heuristic's own configuration did not run
        if path.exists():
            kept = kind.tuned.FAMILY.read(path)
            if all(kept[name] == header[name] for name in ("gpu", "torch", "triton")):
                self._ops = kept["ops"]
            else:
                print(f"{path} is of another GPU or version: begun anew")

    def __len__(self) -> int:
        return sum(map(len, self._ops.values()))

    def find(self, ask: Ask) -> Config | None:
        """The configuration for exactly these sizes."""
        found = (entry["config"] for entry in self._ops.get(ask.op, ()) if entry["sizes"] == ask.sizes)
        return next(found, None)

    def add(self, ask: Ask, entry: Entry) -> None:
        self._ops.setdefault(ask.op, []).append({"sizes": ask.sizes, **entry})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self._path) as path:
            path.write_text(self._text(), encoding="utf-8")

    def _text(self) -> str:
        """JSON with a line for each entry."""
        header = "".join(f"{json.dumps(name)}: {json.dumps(self._header[name])},\n" for name in HEADER)
        rows = {op: ",\n".join(map(json.dumps, entries)) for op, entries in self._ops.items()}
        ops = ",\n".join(f"{json.dumps(op)}: [\n{lines}\n]" for op, lines in rows.items())
        return f'{{\n{header}"ops": {{\n{ops}\n}}\n}}\n'
