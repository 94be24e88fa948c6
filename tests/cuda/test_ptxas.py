"""nvcc makes the library, in which no kernel spills a register."""

from __future__ import annotations

from pathlib import Path

import pytest

from mbv3fast.cuda import library
from mbv3fast.cuda.compiled import TILES

builder = pytest.importorskip("mbv3fast.csrc.build")
ptxas = pytest.importorskip("mbv3fast.csrc.ptxas")
pytestmark = pytest.mark.skipif(bool(builder.lacks_tools()), reason=builder.lacks_tools())
ALL = "8.0 8.6 8.7 8.9 9.0 10.0 12.0+PTX"  # the default, whatever the environment says


@pytest.mark.parametrize("arch", ["9.0+PTX", pytest.param(ALL, marks=pytest.mark.slow)])
def test_the_library_has_every_kernel_and_none_spills(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one test, as the library takes minutes; in a folder of its own, so that a developer's objects stay."""
    built = builder.build(tmp_path, arch=arch, folder="ptxas", say=lambda _: None)
    wanted = [name.removesuffix("+PTX").replace(".", "") for name in arch.split()]
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    monkeypatch.setattr(library, "emulated", lambda: False)
    assert library.library_path() == built
    assert library.architectures() == " ".join([*wanted, "90+PTX"])
    assert library.library().mbv3fast_emulated() == 0
    logs = sorted((builder.SOURCES.parent / "build" / "csrc" / "ptxas" / "ptxas").glob("*.log"))
    rows = ptxas.demangled([row for log in logs for row in ptxas.parse_log(log.read_text(encoding="utf-8"))])
    assert {row.architecture for row in rows} == set(wanted)
    assert [row for row in rows if row.spill_stores or row.spill_loads] == []
    assert {row.shared for row in rows} == {0}, "launches allow kernels all that a chip has beside"
    blocks = [row for row in rows if row.kernel.startswith("inverted_residual_kernel")]
    assert len(blocks) == 2 * len(TILES) * len(wanted), "both dtypes, every tile"
