"""Result files for reports, made here: every number in them is invented."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.report import main
from benchmarks.reporting.readme import BEGIN, END

H100 = {"name": "NVIDIA H100", "driver": "580.1", "capability": "9.0"}
NETWORK = {"suite": "networks", "device": "gpu", "variant": "large", "batch": 1, "size": 224, "dtype": "float16"}
STEP = {**NETWORK, "suite": "steps", "contender": "mbv3fast", "view": "device", "launches": 2}
CPU = {"device": "cpu", "dtype": "float32", "view": "latency"}


def row(us: float, contender: str = "mbv3fast", **extra: Any) -> dict[str, Any]:
    stats = {"median": us / 1e6, "iqr": us / 1e7, "q1": us / 1e6, "q3": us / 1e6}
    named = {**NETWORK, "view": "latency", "cache": None, "contender": contender}
    return {"name": "bench", "stats": stats, "extra_info": {**named, "p50": us / 1e6, "p99": us / 5e5, **extra}}


def refusal(contender: str, reason: str, **extra: Any) -> dict[str, Any]:
    return {**NETWORK, "view": "latency", "cache": None, "contender": contender, "reason": reason, **extra}


class Files:
    """Writes result files into a folder, and runs the report on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.readme = folder, folder / "README.md"
        self.readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")

    def write(self, name: str, *rows: Any, refused: Any = (), day: int = 1, gpu: Any = H100, **machine: Any) -> Path:
        info = {"gpu": gpu, "cpu": {"brand_raw": "A CPU"}, "cores": 2, "versions": {"torch": "2.11"}, "dry_run": False}
        whole = {"datetime": f"2026-11-{day:02}T12:00:00", "machine_info": {**info, **machine}}
        path = self.folder / name
        path.write_text(json.dumps({**whole, "benchmarks": rows, "refused": list(refused)}))
        return path

    def report(self, *paths: Path) -> str:
        assert main([*map(str, paths), "--out", str(self.folder / "out")]) == 0
        return (self.folder / "out" / "report.md").read_text()

    def readme_of(self, *paths: Path, check: bool = False) -> int:
        options = ["--out", str(self.folder / "out"), "--readme", str(self.readme), *(["--check"] if check else [])]
        return main([*map(str, paths), *options])


def below(text: str, title: str) -> list[str]:
    """The table under a title, without its second line."""
    lines = text.partition(f"{title}\n\n")[2].partition("\n\n")[0].splitlines()
    return [line.strip("| ") for line in (*lines[:1], *lines[2:])]


NETWORKS = (
    row(200, prepared_s=3.21),
    row(180, view="device", cache="warm"),
    row(260, view="device", cache="cold"),
    row(1234.5, "torchvision"),
    row(150, "faster | <peer>"),
    row(900, batch=8),
    row(800, batch=8, view="stream"),
    row(400, "torchvision", batch=8, view="stream"),
    row(2000, "timm", batch=8),
)
