"""The CUDA sources cut down to one instance of a kernel, which compiles in seconds; where wanted, with a mistake."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from mbv3fast.cuda import library

ROOT = Path(__file__).parents[2]
OBJECTS = ROOT / "build" / "csrc" / "emulated" / "CMakeFiles" / "emulation.dir"


class Cut(NamedTuple):
    """What of a source is compiled: each (pattern, replacement) must be found there once, but for `tile`.

    tile: the line that is left of inverted_residual_tiles.inc.
    """

    source: str
    edits: tuple[tuple[str, str], ...]
    tile: str = ""


_HALF = (r"choose<bfloat16>\(\*args", "choose<float16>(*args")
CUTS = {
    "projected": Cut("inverted_residual.cu", (_HALF,), "TILE(3, 1, kRelu, 4, 8, 2, 4, 32, 32, true)"),
    "sums": Cut("inverted_residual.cu", (_HALF,), "TILE(5, 2, kRelu, 4, 8, 2, 4, 32, 0, true)"),
    "not expanded": Cut("inverted_residual.cu", (_HALF,), "TILE(3, 1, kRelu, 8, 16, 2, 4, 16, 16, false)"),
    "depthwise": Cut(
        "depthwise_conv.cu",
        (
            (r"by_geometry<bfloat16>", "by_geometry<float16>"),
            (r"a.stride == 1 \? (by_activation<T, 3, 1>\(a, stream\)) : .*;", r"\1;"),
            (r"a.stride == 1 \? .* : (by_activation<T, 5, 2>)", r"\1"),
            (r"  switch (.*\n){5}", "  return run<T, K, Stride, Activation::relu>(a, stream);\n"),
        ),
    ),
    "pointwise": Cut("pointwise_conv.cu", (_HALF, (r"(  if \(is\(16, 16.*\n)(.*\n)(  if \(is.*\n){5}", r"\2"))),
    "network": Cut(
        "network.cu", ((r"run<bfloat16>", "run<float16>"), (r"count_clusters<bfloat16>", "count_clusters<float16>"))
    ),
    "squeeze-excite": Cut("squeeze_excite.cu", ((r"run<bfloat16>", "run<float16>"),)),
    "excite": Cut(
        "excite.cu",
        (
            (r"run<bfloat16>", "run<float16>"),
            (r"a\.images_per_cluster == 1 \? plan<T, 1>\(a, stream\) : plan<T, 8>", "plan<T, 1>"),
        ),
    ),
}


def copy_sources(folder: Path) -> Path:
    """csrc/ in a folder of its own."""
    return Path(shutil.copytree(ROOT / "csrc", folder / "csrc", ignore=shutil.ignore_patterns("__pycache__")))


def cut(sources: Path, name: str) -> Path:
    """The source of one of CUTS in a copy, cut down."""
    chosen = CUTS[name]
    path = sources / chosen.source
    text = path.read_text(encoding="utf-8")
    for pattern, replacement in chosen.edits:
        text, count = re.subn(pattern, replacement, text)
        assert count == 1, pattern
    path.write_text(text, encoding="utf-8")
    if chosen.tile:
        tiles = sources / "inverted_residual_tiles.inc"
        assert chosen.tile in tiles.read_text(encoding="utf-8")
        tiles.write_text(chosen.tile + "\n", encoding="utf-8")
    return path


def mistake(sources: Path, file: str, right: str, wrong: str) -> None:
    """Put `wrong` where a file of a copy has `right`, once."""
    path = sources / file
    text = path.read_text(encoding="utf-8")
    assert text.count(right) == 1, f"{file} has {text.count(right)} of {right!r}"
    path.write_text(text.replace(right, wrong), encoding="utf-8")


def compiled(source: Path, *others: Path) -> ctypes.CDLL:
    """A library of sources and the emulation, whose objects the emulated library has left."""
    target = source.with_suffix(".so")
    objects = sorted(map(str, OBJECTS.rglob("*.o")))
    assert objects
    options = ["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-U_FORTIFY_SOURCE"]
    defined = ["-DMBV3FAST_EMULATED", f"-I{source.parent}", f"-I{source.parent / 'include'}"]
    compiler = shutil.which("c++") or "g++"
    inputs = ["-x", "c++", *map(str, (source, *others)), "-x", "none", *objects]
    subprocess.run([compiler, *options, *defined, *inputs, "-o", str(target)], check=True)
    loaded = ctypes.CDLL(str(target))
    library._declare(loaded)
    return loaded
