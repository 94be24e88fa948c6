"""Every CUDA kernel compiles, and none spills a register; what ptxas says of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mbv3fast.cuda.tiles import TILES

builder = pytest.importorskip("mbv3fast.csrc.build")
ptxas = pytest.importorskip("mbv3fast.csrc.ptxas")
pytestmark = pytest.mark.skipif(bool(builder.lacks_tools()), reason=builder.lacks_tools())
REGISTERS = 255  # a thread may have
STATIC_SHARED = 1024  # bytes: kernels have theirs from the launch
ALL = "8.0 8.6 8.7 8.9 9.0 10.0 12.0+PTX"


@pytest.mark.slow  # minutes: ninety seconds of a core for each architecture
@pytest.mark.parametrize("arch", ["8.0", "9.0", ALL])
def test_no_kernel_spills(arch: str, tmp_path: Path) -> None:
    """A Large's widest blocks hold some two hundred registers of sums and taps."""
    folder = f"ptxas-{arch.split()[0]}" if arch != ALL else "ptxas-all"
    builder.build(tmp_path, arch=arch, folder=folder, say=lambda _: None)
    logs = sorted((builder.SOURCES.parent / "build" / "csrc" / folder / "ptxas").glob("*.log"))
    rows = ptxas.demangled([row for log in logs for row in ptxas.parse_log(log.read_text(encoding="utf-8"))])
    assert {row.architecture for row in rows} == {name.replace(".", "").partition("+")[0] for name in arch.split()}
    assert [row for row in rows if row.spill_stores or row.spill_loads] == []
    assert max(row.registers for row in rows) <= REGISTERS
    assert max(row.shared for row in rows) <= STATIC_SHARED
    blocks = [row for row in rows if row.kernel.startswith("inverted_residual_kernel")]
    assert len(blocks) == 2 * len(TILES) * len(arch.split()), "both dtypes, every tile"
