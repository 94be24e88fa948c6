"""Building the library of CUDA kernels: which architectures, what is missing, what fails and how, what wheels carry."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mbv3fast.cli import main
from mbv3fast.csrc import build as builder
from mbv3fast.csrc.build import BuildError, chosen_architectures, first_errors, install, parse_architectures
from tests.cli import run

ROOT = Path(__file__).parents[1]
OFFERED = ("75", "80", "86", "89", "90", "120")
VARIABLES = ("MBV3FAST_SKIP_CUDA", "MBV3FAST_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDACXX", "CUDA_HOME", "CUDA_PATH", "CXX")
needs_tools = pytest.mark.skipif(bool(builder.lacks_tools(emulated=True)), reason=builder.lacks_tools(emulated=True))
FAILING_NVCC = """#!/bin/sh
case "$*" in *--list-gpu-code*) echo sm_80; exit 0;; esac
echo "host_config.h:143:2: error: #error -- unsupported GNU version!" >&2
exit 1
"""
TINY = """
cmake_minimum_required(VERSION 3.24)
project(tiny LANGUAGES CXX)
add_library(mbv3fast_emulated SHARED tiny.cpp)
"""


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def no_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "no toolkit"))  # which outranks PATH


@pytest.fixture
def failing_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sources: Path) -> None:
    """A CUDA toolkit whose compiler refuses the host's, as new distributions have it; the sources are copies."""
    shutil.copytree(ROOT / "csrc", sources, dirs_exist_ok=True)
    path = tmp_path / "toolkit" / "bin" / "nvcc"
    path.parent.mkdir(parents=True)
    path.write_text(FAILING_NVCC)
    path.chmod(0o755)
    monkeypatch.setenv("CUDA_HOME", str(path.parents[1]))


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in place of csrc/, with a library that compiles at once; not in a checkout."""
    folder = tmp_path / "package" / "csrc"
    folder.mkdir(parents=True)
    (folder / "CMakeLists.txt").write_text(TINY)
    (folder / "tiny.cpp").write_text('extern "C" int answer() { return 42; }\n')
    monkeypatch.setattr(builder, "SOURCES", folder)
    return folder


@pytest.fixture
def checkout(sources: Path) -> Path:
    (sources.parent / "setup.py").touch()
    return sources


@pytest.mark.parametrize(
    ("wanted", "names"),
    [
        ("8.0", ["80-real"]),
        ("8.0 9.0+PTX", ["80-real", "90"]),
        ("9.0+PTX;8.0;12.0", ["80-real", "90", "120-real"]),
        (" 8.0,  8.9 ; ", ["80-real", "89-real"]),
        ("9.0 9.0+PTX", ["90"]),
        ("9.0 9.0a", ["90-real", "90a-real"]),
        ("90 120+PTX", ["90-real", "120"]),
        ("Hopper", ["90"]),
        ("Ampere", ["80-real", "86"]),
        ("Ada;8.0", ["80-real", "89"]),
    ],
)
def test_architectures_are_read_as_torch_writes_them(wanted: str, names: list[str]) -> None:
    assert parse_architectures(wanted, "--arch", OFFERED) == names


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("", "got '', needs architectures such as '8.0 9.0+PTX' or 'Hopper'"),
        ("sm_90", "got 'sm_90', needs architectures such as"),
        ("8.0 9", "got '9', needs architectures such as"),
        ("9.0+ptx", "got '9.0+ptx', needs architectures such as"),
        ("Rubin", "got 'Rubin', needs architectures such as"),
        ("8.0 10.0", "got '10.0', which this nvcc doesn't have; it has 75, 80, 86, 89, 90, 120"),
        ("7.5", "got '7.5', needs one architecture of 8.0 or later"),
        ("Turing", "got 'Turing', needs one architecture of 8.0 or later"),
    ],
)
def test_wrong_architectures_are_named(monkeypatch: pytest.MonkeyPatch, wanted: str, message: str) -> None:
    with pytest.raises(BuildError, match=f"^--arch: {re.escape(message)}"):
        chosen_architectures(wanted, OFFERED)
    if wanted:  # an empty variable is none
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", wanted)
        with pytest.raises(BuildError, match=f"^TORCH_CUDA_ARCH_LIST: {re.escape(message)}"):
            chosen_architectures(None, OFFERED)


def test_the_argument_the_environment_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = ["80-real", "86-real", "87-real", "89-real", "90-real", "100-real", "120"]
    assert chosen_architectures(None) == everything
    assert chosen_architectures(None, OFFERED[:-1]) == ["80-real", "86-real", "89-real", "90"]  # an older nvcc
    with pytest.raises(BuildError, match=r"^this nvcc is too old: it has 70, 75, the kernels need 80 or later$"):
        chosen_architectures(None, ("70", "75"))
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert chosen_architectures(None, OFFERED) == ["90-real"]
    assert chosen_architectures("8.6", OFFERED) == ["86-real"]
    said = re.search(r"set\(CMAKE_CUDA_ARCHITECTURES (.*)\)", (ROOT / "csrc" / "CMakeLists.txt").read_text())
    assert said is not None
    assert said[1].split() == everything


def test_older_chips_of_a_list_meant_for_all_packages_are_left_out() -> None:
    said: list[str] = []
    assert parse_architectures("7.5 8.0", "TORCH_CUDA_ARCH_LIST", OFFERED, said.append) == ["80-real"]
    assert said == ["TORCH_CUDA_ARCH_LIST: 7.5 is left out: the kernels need 8.0 or later"]


@pytest.mark.usefixtures("no_nvcc")
def test_without_nvcc_an_installation_says_so_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")  # as containers do that have no compiler
    assert install(tmp_path / "lib") is None
    said = capfd.readouterr()
    assert said.out == "mbv3fast: no nvcc here, so without CUDA kernels; `mbv3fast build` adds them later\n"
    assert said.err == ""
    monkeypatch.setenv("MBV3FAST_CUDA", "1")
    with pytest.raises(BuildError, match=r"^no nvcc, .* what CUDA_HOME says, /.*/no toolkit, and nowhere else"):
        install(tmp_path / "lib")
    assert not (tmp_path / "lib").exists()


@pytest.mark.usefixtures("failing_nvcc")
def test_skipping_asks_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MBV3FAST_SKIP_CUDA", "1")
    monkeypatch.setenv("MBV3FAST_CUDA", "1")
    assert install(tmp_path / "lib") is None
    assert capfd.readouterr() == ("mbv3fast: without CUDA kernels, as MBV3FAST_SKIP_CUDA says\n", "")


@needs_tools
@pytest.mark.usefixtures("failing_nvcc")
def test_a_failing_compiler_fails_an_installation_that_asked_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    assert install(tmp_path / "lib") is None
    warning = capfd.readouterr().err
    assert warning.startswith("mbv3fast: warning: installed without CUDA kernels, which couldn't be built: CMake can't")
    assert "error: #error -- unsupported GNU version!" in warning
    assert len(warning.splitlines()) <= 6
    for name, value in (("MBV3FAST_CUDA", "1"), ("TORCH_CUDA_ARCH_LIST", "8.0")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            with pytest.raises(BuildError, match="error: #error -- unsupported GNU version!"):
                install(tmp_path / "lib")
    assert not (tmp_path / "lib").exists()


def test_a_wrong_list_fails_an_installation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "sm_90")
    monkeypatch.setattr(builder, "find_nvcc", lambda: "/bin/true")
    monkeypatch.setattr(builder, "lacks_tools", lambda _: "")
    with pytest.raises(BuildError, match=r"^TORCH_CUDA_ARCH_LIST: got 'sm_90'"):
        install(tmp_path)


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("nvcc", "no nvcc, which the CUDA toolkit has"),
        ("c++", "no C++ compiler: looked for c++, g++, clang++"),
        ("cmake", "no cmake (pip install cmake)"),
        ("ninja", "no ninja (pip install ninja)"),
    ],
)
def test_a_missing_tool_is_named(monkeypatch: pytest.MonkeyPatch, missing: str, reason: str) -> None:
    missed = ("c++", "g++", "clang++") if missing == "c++" else (missing,)
    monkeypatch.setattr(builder.shutil, "which", lambda name, **_: None if name in missed else f"/bin/{name}")
    assert builder.lacks_tools().startswith(reason)
    monkeypatch.setattr(builder.sys, "platform", "win32")
    assert builder.lacks_tools() == "the library is built on Linux alone, not on win32"


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({}, "on-path"),
        ({"CUDA_HOME": "home"}, "home/bin/nvcc"),
        ({"CUDA_PATH": "path"}, "path/bin/nvcc"),
        ({"CUDA_HOME": "home", "CUDACXX": "mine"}, "mine"),
    ],
)
def test_where_nvcc_is_looked_for(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], found: str) -> None:
    def which(name: str, path: Path | None = None) -> str:
        return f"{path}/{name}" if path else "on-path" if name == "nvcc" else name

    monkeypatch.setattr(builder.shutil, "which", which)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert builder.find_nvcc() == found


@needs_tools
def test_a_failing_source_is_quoted_and_the_library_stays(sources: Path, tmp_path: Path) -> None:
    lib = tmp_path / "lib"
    built = builder.build(lib, emulated=True)
    before = built.read_bytes()
    assert ctypes.CDLL(str(built)).answer() == 42
    (sources / "tiny.cpp").write_text("int wrong(;\n")
    said: list[str] = []
    with pytest.raises(BuildError, match=r"^the compiler fails:\n.*tiny.cpp:1:\d+: error: "):
        builder.build(lib, emulated=True, say=said.append)
    assert any("tiny.cpp:1:" in line for line in said)
    assert built.read_bytes() == before
    assert os.listdir(lib) == [built.name]
    assert not (sources.parent / "build").exists()


@needs_tools
def test_builds_at_once_take_turns_and_leave_one_library(checkout: Path, tmp_path: Path) -> None:
    lib, said = tmp_path / "lib", []
    with ThreadPoolExecutor(2) as pool:
        with builder._build_folder("emulated", said.append):  # which a third one has
            builds = [pool.submit(builder.build, lib, emulated=True, say=said.append) for _ in range(2)]
            while len(said) < 2 and not any(build.done() for build in builds):
                time.sleep(0.01)
            assert all(line.startswith("waiting for another build in ") for line in said)
        assert {build.result() for build in builds} == {lib / "libmbv3fast_emulated.so"}
    assert ctypes.CDLL(str(lib / "libmbv3fast_emulated.so")).answer() == 42
    assert os.listdir(lib) == ["libmbv3fast_emulated.so"]
    assert sum("Linking" in line for line in said) == 1  # the other found nothing to do
    assert (checkout.parent / "build" / "csrc" / "emulated" / "build.ninja").is_file()


@needs_tools
def test_a_build_folder_of_another_compiler_is_made_anew(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for flags, answer in (("", 42), ("-Danswer=other", None)):
        monkeypatch.setenv("CXXFLAGS", flags)
        built = builder.build(tmp_path / flags, emulated=True)
        assert hasattr(ctypes.CDLL(str(built)), "answer") is (answer is not None)
    assert len(list(checkout.parent.glob("build/csrc/*/CMakeCache.txt"))) == 1


@needs_tools
@pytest.mark.usefixtures("sources")
def test_the_command_builds_into_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbv3fast.cli.build.FOLDER", tmp_path / "lib")
    result = run("build", "--emulated")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    path = tmp_path / "lib" / "libmbv3fast_emulated.so"
    assert lines[-1] == f"built {path}, which MBV3FAST_EMULATE=1 loads"
    assert any(line.startswith("[1/2] Building CXX object") for line in lines)  # Ninja's own words
    assert "CMakeFiles/mbv3fast_emulated.dir/tiny.cpp.o -c " in run("build", "--emulated", "--verbose").output


@pytest.mark.usefixtures("no_nvcc")
def test_the_command_that_cannot_build_ends_in_a_line() -> None:
    result = run("build")
    assert (result.exit_code, len(result.output.splitlines())) == (1, 1)
    assert result.output.startswith("Error: no nvcc, which the CUDA toolkit has")
    assert run("build", "--emulated", "--arch", "9.0").exit_code == 2
    assert "build" in main.commands


def test_first_errors_are_the_compilers() -> None:
    assert (
        first_errors("CMake Error at a:1\nfine\na.cu(1): error: b\nnvcc fatal   : c\n")
        == "a.cu(1): error: b\nnvcc fatal   : c"
    )
    assert first_errors("one\n\ntwo\nthree\n", 2) == "two\nthree"
