"""Emulated kernels under AddressSanitizer and UndefinedBehaviorSanitizer, clean, and not so where they mustn't be.

The sources are cut down to one instance a kernel, and compiled without optimisation: sanitizers take their time.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from mbv3fast.cluster import Cut, as_bytes, cut_as
from tests.cuda.cut_networks import EXCITED, LAST, NARROW, PLAIN, WIDE, made_of, plan_of
from tests.cuda.reduced import copy_sources, cut, mistake

builder = pytest.importorskip("mbv3fast.csrc.build")
DRIVER = Path(__file__).parent / "driver.cpp"
KERNELS = "set(KERNELS inverted_residual.cu network.cu depthwise_conv.cu excite.cu pointwise_conv.cu squeeze_excite.cu)"


@pytest.fixture(scope="module", autouse=True)
def _sanitizers(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where the compiler has none."""
    lack = builder.lacks_tools(emulated=True)
    if lack:
        pytest.skip(lack)
    source = tmp_path_factory.mktemp("empty") / "empty.cpp"
    source.write_text("int main() {}\n", encoding="utf-8")
    compiler = shutil.which("c++") or "g++"
    command = [compiler, "-fsanitize=address,undefined", str(source), "-o", str(source.with_suffix(""))]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("the compiler has no sanitizers")


def build(sources: Path) -> Path:
    """The program that CMake calls the example, anew."""
    folder = sources.parent / "build"
    cmake, ninja = (str(builder._find_tool(tool)) for tool in ("cmake", "ninja"))
    options = [f"-DMBV3FAST_{name}=ON" for name in ("EMULATED", "SANITIZED", "EXAMPLE")]
    options += ["-DCMAKE_CXX_FLAGS_RELEASE=-O0", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
    subprocess.run([cmake, "-S", str(sources), "-B", str(folder), "-G", "Ninja", *options], check=True)
    subprocess.run([ninja, "-C", str(folder), "mbv3fast_example"], check=True)
    return folder / "mbv3fast_example"


def run(program: Path, *arguments: Path) -> subprocess.CompletedProcess[str]:
    options = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **options})


def sources_of(folder: Path, *instances: str) -> Path:
    """Of these kernels alone."""
    sources = copy_sources(folder)
    names = " ".join(cut(sources, instance).name for instance in instances)
    mistake(sources, "CMakeLists.txt", KERNELS, f"set(KERNELS {names})")
    return sources


# What the emulation can't see: it believes the sizes that launchers tell, and arrays in registers have no bounds there.
LIE = (
    ("weights(a.bias, a.channels)", "weights(a.bias, 2 * a.channels)"),
    ("load_floats(bias, p.bias + channel)", "load_floats(bias, p.bias + channel + 8)"),
)
BEYOND = (("sums[o][c] = bias[c];", "sums[o][c] = bias[c + o];"),)
SEEN = {
    "AddressSanitizer: heap-buffer-overflow": LIE,
    "index 8 out of bounds for type 'float [8]'": BEYOND,
}


def test_the_example_is_clean_and_mistakes_are_seen(tmp_path: Path) -> None:
    sources = sources_of(tmp_path, "depthwise")
    found = run(build(sources))
    assert (found.returncode, found.stdout, found.stderr) == (0, "corner right, inside right\n", "")
    kernel = sources / "depthwise_conv.cu"
    right = kernel.read_text(encoding="utf-8")
    for words, edits in SEEN.items():
        kernel.write_text(right, encoding="utf-8")
        for edit in edits:
            mistake(sources, kernel.name, *edit)
        found = run(build(sources))
        assert found.returncode != 0
        assert words in found.stderr
        assert kernel.name in found.stderr


def write_tables(folder: Path) -> None:
    """A network's, of both kinds of stages with and without squeeze-excite, for images of 21x26 and clusters of 2."""
    tables = cut_as(plan_of(made_of(PLAIN, EXCITED, WIDE, NARROW, LAST)), (21, 26), Cut(2, 8 * 1024, (1, 1, 1, 2, 2)))
    for name, table in {"stages": as_bytes(tables.stages), "chunks": as_bytes(tables.chunks)}.items():
        (folder / name).write_bytes(table.numpy().tobytes())
    (folder / "weights").write_bytes(tables.weights.numpy().tobytes())
    counts = tables.outputs, len(tables.stages), len(tables.chunks)
    numbers = 3, 21, 26, *counts, tables.cut.blocks, tables.cut.slot, tables.shared_bytes
    (folder / "numbers").write_text(" ".join(map(str, numbers)), encoding="utf-8")


def test_every_kernel_is_clean(tmp_path: Path) -> None:
    sources = sources_of(tmp_path, "depthwise", "projected", "pointwise", "excite", "squeeze-excite", "network")
    shutil.copy(DRIVER, sources / "example" / "depthwise_conv.cpp")
    write_tables(tmp_path)
    found = run(build(sources), tmp_path)
    assert (found.returncode, found.stderr) == (0, "")
    ran = {line.removesuffix(" runs") for line in found.stdout.splitlines()}
    kernels = {"depthwise_conv", "inverted_residual", "pointwise_conv", "excite", "squeeze_excite", "network"}
    assert ran == {*kernels, "squeeze_excite_tiles", "network_clusters"}
