"""The whole run on a CPU, tiny: killed in the middle, gone on with, and the report that comes of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.gpu.stage import ROOT
from benchmarks.gpu.stages import stages

pytestmark = pytest.mark.alone
MINUTES = 5
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}  # what else the machine does then costs no more than its share
RUN = (sys.executable, "-m", "benchmarks.gpu_run", "--dry-run", "--minutes", str(MINUTES))


def entries(out: Path) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = json.loads((out / "stages.json").read_text())["stages"]
    except (OSError, ValueError):
        return []
    return found


def test_a_dry_run(tmp_path: Path) -> None:
    out = tmp_path / "run"
    begin = time.monotonic()
    process = subprocess.Popen([*RUN, "--out", str(out)], cwd=ROOT, env=ENV)
    while [entry["status"] for entry in entries(out)].count("passed") < 2:
        assert process.poll() is None, "it ends before it is killed"
        assert time.monotonic() - begin < 60
        time.sleep(0.1)
    process.kill()
    process.wait()
    ended = {entry["name"]: entry for entry in entries(out) if entry["status"] != "cut"}
    ran = subprocess.run([*RUN, "--out", str(out), "--resume"], cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert time.monotonic() - begin < 60 * MINUTES
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "all stages have ended" in ran.stdout

    assert [entry["name"] for entry in entries(out)] == [stage.name for stage in stages(out, dry=True)]
    assert {entry["status"] for entry in entries(out)} <= {"passed", "skipped"}
    for entry in entries(out):
        if entry["name"] in ended:
            assert entry == ended[entry["name"]], "it was done once"
    _check_report(out)
    with tarfile.open(out / "results.tar.gz") as archive:
        names = {Path(name).name for name in archive.getnames()}
    assert names >= {"results.json", "report.md", "stages.json", "steps-1.log", "tune.json", "tune-cuda.json"}
    assert names >= {"timeline-small.png", "timeline-small.json", "network-plan.log", "network-sanitizers.log"}


def _check_report(out: Path) -> None:
    text = (out / "report.md").read_text()
    assert text.startswith("# Measurements of mbv3fast (dry run")
    for title in ("### Latency at batch 1", "### By batch", "### By op", "### By step"):
        assert f"\n{title}\n" in text
    for contender in ("mbv3fast", "torchvision", "timm", "torch.compile default", "JAX", "ONNX Runtime", "OpenVINO"):
        assert f"| {contender} |" in text.replace("**", ""), contender
    assert "TensorRT" in text.partition("Not timed:")[2], "with its reason"
    charts = {path.name for path in out.glob("cpu-*.png")}
    kinds = ("latency", "throughput", "floor-batch-1")
    assert charts == {
        *(f"cpu-1-small-float32-32-{kind}.png" for kind in kinds),
        *(f"cpu-1-large-float32-32-{kind}.png" for kind in kinds[:2]),
    }
    for name in charts:
        assert f"]({name})" in text
        with Image.open(out / name) as image:
            assert image.width > 800
