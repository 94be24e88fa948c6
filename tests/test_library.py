"""The library of CUDA kernels: found, loaded once, refused with the reason; its C API as Python has it."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from mbv3fast.cli.doctor import doctor
from mbv3fast.cuda import library, structs
from mbv3fast.cuda.library import KernelError, check, covers, lacks_library, lacks_loading
from tests.cli import run
from tests.stand_ins import in_threads

HEADER = Path(__file__).parents[1] / "csrc" / "include" / "mbv3fast.h"
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
STUB = """
extern "C" int mbv3fast_version() {{ return {version}; }}
extern "C" const char* mbv3fast_error(int) {{ return "stub"; }}
extern "C" int mbv3fast_emulated() {{ return 0; }}
extern "C" void mbv3fast_emulate(int, unsigned long) {{}}
extern "C" const char* {architectures}() {{ return "80 87 90 120+PTX"; }}
extern "C" const char* mbv3fast_sources() {{ return "{sources}"; }}
"""


@pytest.fixture(autouse=True)
def _of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment says of emulation."""
    monkeypatch.setattr(library, "emulated", lambda: False)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the library is looked for; empty."""
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    return tmp_path


def put_stub(
    folder: Path,
    version: int = library.VERSION,
    architectures: str = "mbv3fast_architectures",
    sources: str = "",
) -> Path:
    """A library for GPUs by name, which has no kernel."""
    compiler = shutil.which("c++") or pytest.skip("no C++ compiler")
    source, path = folder / "stub.cpp", folder / "libmbv3fast_cuda.so"
    source.write_text(STUB.format(version=version, architectures=architectures, sources=sources))
    subprocess.run([compiler, "-shared", "-fPIC", "-o", path, source], check=True)
    return path


def test_a_library_that_is_not_built_says_how_to_build_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how = "mbv3fast build; for a CPU, mbv3fast build --emulated and MBV3FAST_EMULATE=1"
    assert lacks_library(CUDA) == lacks_loading() == f"the CUDA library is not built ({how})"
    with pytest.raises(KernelError, match=r"^the CUDA library is not built \(mbv3fast build; for a CPU, "):
        library.library()
    monkeypatch.setattr(library, "emulated", lambda: True)
    assert lacks_library(CPU) == "the CUDA library is not built (mbv3fast build --emulated)"
    assert library.library_path() == folder / "libmbv3fast_emulated.so"


def test_what_cannot_be_loaded_is_told_in_the_loaders_words(folder: Path) -> None:
    path = folder / "libmbv3fast_cuda.so"
    path.write_text("no library")
    assert lacks_library(CUDA) == f"the CUDA library can't be loaded: {path}: file too short"


@pytest.mark.parametrize("version", [0, library.VERSION + 1])
def test_another_version_of_the_interface_is_refused(folder: Path, version: int) -> None:
    path = put_stub(folder, version)
    assert lacks_library(CUDA) == (
        f"{path} has version {version} of its interface, this package needs {library.VERSION} (mbv3fast build)"
    )


def test_another_library_is_refused(folder: Path) -> None:
    put_stub(folder, architectures="of_others")
    assert "is another one (mbv3fast build): " in lacks_library(CUDA)
    assert "mbv3fast_architectures" in lacks_library(CUDA)


@pytest.mark.parametrize(
    ("capability", "reason"),
    [
        ((8, 9), ""),
        ((12, 1), ""),
        ((7, 5), "the CUDA library is for 80 87 90 120+PTX, not for compute capability 7.5"),
        ((10, 0), "the CUDA library is for 80 87 90 120+PTX, not for compute capability 10.0"),
    ],
)
def test_a_gpu_needs_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], reason: str
) -> None:
    put_stub(folder)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert lacks_library(CUDA) == reason


@pytest.mark.parametrize(
    ("architectures", "runs", "does_not"),
    [
        ("80", [(8, 0), (8, 6), (8, 9)], [(7, 5), (8, 7), (9, 0), (12, 0)]),  # 8.7 is apart
        ("87", [(8, 7)], [(8, 6), (8, 9)]),
        ("89", [(8, 9)], [(8, 6), (9, 0)]),
        ("90a", [(9, 0)], [(9, 1), (10, 0)]),
        ("90a+PTX", [(9, 0)], [(10, 0)]),
        ("100", [(10, 0), (10, 3)], [(10, 1), (11, 0), (12, 0)]),
        ("80+PTX", [(8, 0), (8, 7)], [(7, 5), (9, 0), (12, 1)]),  # which lacks what they need
        ("90+PTX", [(9, 0), (10, 0), (12, 1)], [(8, 9)]),
        ("80 120 120+PTX", [(8, 6), (12, 0), (13, 0)], [(9, 0), (10, 0)]),
        ("", [], [(8, 0), (9, 0)]),
    ],
)
def test_which_gpus_code_runs_on(
    architectures: str, runs: list[tuple[int, int]], does_not: list[tuple[int, int]]
) -> None:
    assert [capability for capability in runs + does_not if covers(architectures, capability)] == runs


@pytest.mark.usefixtures("folder")
def test_devices_that_no_library_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before the library is looked for."""
    assert lacks_library(CPU) == "a CPU runs the CUDA kernels in emulation alone (MBV3FAST_EMULATE=1)"
    assert lacks_library(torch.device("meta")) == "no kernels for meta"
    monkeypatch.setattr(torch.version, "hip", "6.0")
    assert lacks_library(CUDA) == "no kernels for AMD"
    monkeypatch.setattr(library, "emulated", lambda: True)
    assert lacks_library(CUDA) == "the emulation of CUDA kernels (MBV3FAST_EMULATE=1) runs on a CPU"


@pytest.mark.parametrize(("value", "meant"), [("1", True), ("0", False), ("", False), (None, False)])
def test_the_environment_asks_for_emulation(monkeypatch: pytest.MonkeyPatch, value: str | None, meant: bool) -> None:
    monkeypatch.undo()  # the fixture's
    monkeypatch.delenv(library.ENVIRONMENT, raising=False)
    if value is not None:
        monkeypatch.setenv(library.ENVIRONMENT, value)
    assert library.emulated.__wrapped__() is meant


def test_threads_load_it_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, loads = put_stub(folder), []

    def load(name: str) -> Any:
        loads.append(name)
        time.sleep(0.05)  # so that all threads ask meanwhile
        return ctypes.PyDLL(name)

    monkeypatch.setattr(library.ctypes, "CDLL", load)
    in_threads(lambda _: library.library(), 8)
    assert loads == [str(path)]


def test_the_emulated_library_serves_a_cpu(emulation: ctypes.CDLL) -> None:
    assert lacks_library(CPU) == lacks_loading() == ""
    assert library.library() is emulation
    assert emulation.mbv3fast_emulated() == 1
    assert library.architectures() == ""


def test_an_error_has_the_librarys_words(emulation: ctypes.CDLL) -> None:
    check(0)
    args = structs.DepthwiseConvArgs(channels=8)
    with pytest.raises(KernelError, match=r"^depthwise_conv: x: got null, needs a tensor$"):
        check(emulation.mbv3fast_depthwise_conv(ctypes.byref(args), None))
    with pytest.raises(KernelError, match=r"^depthwise_conv: args: got null$"):
        check(emulation.mbv3fast_depthwise_conv(None, None))


@pytest.mark.usefixtures("folder")
def test_doctor_says_what_there_is(emulated_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def said() -> str:
        lines = [line for line in run(doctor.name).output.splitlines() if "library of cuda" in line]
        return lines[0].split(maxsplit=3)[3]

    assert said().startswith("no: the CUDA library is not built (mbv3fast build; ")
    path = put_stub(library.FOLDER, sources=library.sources_here())
    library._LOADED.clear()
    assert said() == f"for 80 87 90 120+PTX: {path}"
    monkeypatch.setattr("mbv3fast.cli.doctor.sources_here", lambda: "newer")
    assert said() == f"for 80 87 90 120+PTX: {path} (of other sources than these: build it anew)"
    monkeypatch.setattr("mbv3fast.cli.doctor.sources_here", library.sources_here)
    monkeypatch.setattr(library, "FOLDER", emulated_library.parent)
    monkeypatch.setattr(library, "emulated", lambda: True)
    assert said() == f"for the CPU, emulated: {emulated_library}"


def declared_structs() -> dict[str, list[tuple[str, str]]]:
    """Of every struct of the header, by the name that Python gives it: the fields' names and types, in order."""
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = {}
    for body, stem in re.findall(r"typedef struct \{(.*?)\} mbv3fast_(\w+);", text, re.DOTALL):
        fields = found["".join(map(str.capitalize, stem.split("_")))] = []
        for statement in filter(None, map(str.strip, body.split(";"))):
            kind, names = re.fullmatch(r"((?:const )?\w+\s?\*?)\s*(.+)", statement, re.DOTALL).groups()  # type: ignore[union-attr]
            fields += [(name.strip(), kind.strip()) for name in names.split(",")]
    return found


def test_structs_are_the_headers() -> None:
    python = {
        "int64_t": ctypes.c_int64,
        "int32_t": ctypes.c_int32,
        "uint64_t": ctypes.c_uint64,
        "float": ctypes.c_float,
    }
    declared = declared_structs()
    assert declared["DepthwiseConvArgs"][:3] == [
        ("x", "const void*"),
        ("weight", "const void*"),
        ("bias", "const float*"),
    ]
    ours = {
        name: value
        for name, value in vars(structs).items()
        if isinstance(value, type) and value.__module__ == structs.__name__
    }
    assert set(ours) == set(declared)
    for name, fields in declared.items():
        expected = [(field, ctypes.c_void_p if kind.endswith("*") else python[kind]) for field, kind in fields]
        assert list(ours[name]._fields_) == expected


def test_the_version_is_the_headers() -> None:
    declared = re.search(r"#define MBV3FAST_VERSION (\d+)", HEADER.read_text(encoding="utf-8"))
    assert declared is not None
    assert int(declared[1]) == library.VERSION


def test_the_example_runs(emulated_library: Path) -> None:
    """C++ that knows the header and the library alone."""
    assert emulated_library.is_file()
    program = HEADER.parents[2] / "build" / "csrc" / "emulated" / "mbv3fast_example"
    result = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "corner right, inside right\n")
