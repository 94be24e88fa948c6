"""The README's section on performance."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")


from benchmarks.report import main
from benchmarks.reporting.readme import BEGIN, END
from benchmarks.reporting.rows import DRY
from tests.reports import CPU, H100, NETWORKS, Files, below, refusal, row


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_the_readme(files: Files) -> None:
    gpu = files.write("gpu.json", *NETWORKS, refused=[refusal("JAX", "not installed")])
    cpu = files.write("cpu.json", row(9000, **CPU), row(6000, "OV", **CPU), row(50000, **CPU, batch=8), gpu=None)
    assert files.readme_of(gpu, cpu) == 0
    text = files.readme.read_text()
    assert re.fullmatch(f"before\n{BEGIN}\nGPU: NVIDIA H100, .*driver 580.1, .*{END}\nafter\n", text, re.S)
    on_gpu, _, on_cpu = text.partition("\nCPU: A CPU, 2 cores, float32, 224x224, torch 2.11, 2026-11-01:")
    assert below(on_gpu, "below 1 it is the slower.") == [
        "network | contender | batch 1 | ratio | images/s, batch 8 | ratio",
        r"Large | faster \| &lt;peer> | 150 us | 0.75x | - | -",
        "Large | **mbv3fast** | 200 us | 1.00x | 10,000 | 1.00x",
        "Large | torchvision | 1.23 ms | 6.17x | 20,000 | 0.50x",
        "Large | timm | - | - | 4,000 (latency) | -",
    ]
    assert "Not timed: JAX: not installed" in on_gpu
    assert (
        "| Large | OV | 6.00 ms | 0.67x | - | - |\n| Large | **mbv3fast** | 9.00 ms | 1.00x | 50.0 ms | 1.00x |"
        in on_cpu
    )


def test_a_readme_without_a_gpu(files: Files) -> None:
    path = files.write("cpu.json", row(9000, **CPU), gpu=None)
    assert main([str(path), "--readme", str(files.readme)]) == 0
    assert f"{BEGIN}\nNot measured on a GPU yet.\n\nCPU: A CPU" in files.readme.read_text()
    assert (path.parent / "report.md").exists(), "beside the results"


def test_check(files: Files, capsys: Any) -> None:
    path = files.write("a.json", *NETWORKS)
    assert files.readme_of(path, check=True) == 1
    assert "README.md: its section on performance is not" in capsys.readouterr().err
    assert sorted(p.name for p in files.folder.iterdir()) == ["README.md", "a.json"]
    assert files.readme_of(path) == 0
    assert files.readme_of(path, check=True) == 0
    files.readme.write_text(files.readme.read_text().replace("200 us", "100 us"))
    assert files.readme_of(path, check=True) == 1


def test_dry_runs_say_so_and_stay_out_of_the_readme(files: Files, capsys: Any) -> None:
    dry = files.write("dry.json", *NETWORKS, gpu=None, dry_run=True)
    real = files.write("real.json", row(200))
    before = files.readme.read_text()
    assert files.readme_of(real, dry) == 1
    assert f"dry.json: {DRY}" in capsys.readouterr().err
    assert files.readme.read_text() == before
    assert files.report(dry).startswith(f"# Measurements of mbv3fast ({DRY})\n")
    png = (files.folder / "out" / "gpu-1-large-float16-224-latency.png").read_bytes()
    text = files.report(dry, real)
    assert text.startswith("# Measurements of mbv3fast\n")
    assert f"## GPU: no GPU (machine 2) ({DRY})\n" in text
    files.report(files.write("dry.json", *NETWORKS, gpu={**H100, "name": "no GPU"}))
    assert (files.folder / "out" / "gpu-1-large-float16-224-latency.png").read_bytes() != png, "its title says so"


@pytest.mark.parametrize("again", [BEGIN, END, f"{BEGIN}{END}"])
@pytest.mark.parametrize("behind", [True, False])
def test_other_than_two_markers_are_refused(files: Files, capsys: Any, again: str, behind: bool) -> None:
    text = files.readme.read_text()
    files.readme.write_text(text + again if behind else again + text)
    before = files.readme.read_bytes()
    assert files.readme_of(files.write("a.json", row(200))) == 1
    assert "each once" in capsys.readouterr().err
    assert files.readme.read_bytes() == before


def test_a_readme_keeps_its_line_ends_and_its_link(files: Files, tmp_path: Path) -> None:
    real = tmp_path / "docs" / "real.md"
    real.parent.mkdir()
    real.write_bytes(files.readme.read_bytes().replace(b"\n", b"\r\n"))
    files.readme.unlink()
    files.readme.symlink_to(real)
    path = files.write("a.json", row(200))
    assert files.readme_of(path) == 0
    assert files.readme.is_symlink()
    written = real.read_bytes()
    assert written.count(b"\n") == written.count(b"\r\n") > 5
    assert files.readme_of(path, check=True) == 0


def test_the_projects_own_readme_is_what_its_results_make() -> None:
    """`make readme-performance` writes it."""
    root = Path(__file__).parent.parent
    results = sorted(map(str, root.glob("benchmarks/results/*/*.json")))
    assert results
    assert main([*results, "--readme", str(root / "README.md"), "--check"]) == 0
