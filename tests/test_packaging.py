"""Wheels and sdists: that they carry the CUDA sources, and the library where one was built. Nothing is downloaded."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from mbv3fast.csrc.build import lacks_tools

ROOT = Path(__file__).parents[1]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")
SOURCES = {
    f"csrc/{path.relative_to(ROOT / 'csrc')}"
    for path in (ROOT / "csrc").rglob("*")
    if path.is_file() and path.suffix != ".pyc"
}
# In place of csrc/build.py: builds at once, or fails.
BUILDER = """
import os
class BuildError(RuntimeError): pass
def install(target):
    if "FAILS" in os.environ: raise BuildError("the compiler fails:\\na.cu(1): error: b")
    if "MBV3FAST_SKIP_CUDA" in os.environ: return None
    target.mkdir(parents=True)
    (target / "libmbv3fast_cuda.so").touch()
    return target / "libmbv3fast_cuda.so"
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """As it is cloned: without links and what is built."""
    folder = tmp_path / "checkout"
    links_and_built = shutil.ignore_patterns("__pycache__", "lib", "kernels", "csrc")
    shutil.copytree(ROOT / "mbv3fast", folder / "mbv3fast", ignore=links_and_built)
    shutil.copy(ROOT / "mbv3fast" / "cli" / "kernels.py", folder / "mbv3fast" / "cli")
    for name in ("kernels", "csrc"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    return folder


def run(*command: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """With no nvcc but that of `environment`, and without what this process has of ours."""
    ours = ("PYTHONPATH", "MBV3FAST_CUDA", "MBV3FAST_SKIP_CUDA", "TORCH_CUDA_ARCH_LIST", "CUDACXX")
    base = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**base, "CUDA_HOME": str(cwd / "no toolkit"), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_bare_checkout_has_kernels(checkout: Path) -> None:
    code = "import mbv3fast.kernels, mbv3fast.csrc.build as build; print(mbv3fast.kernels.__file__, build.__file__)"
    result = run(sys.executable, "-c", code, cwd=checkout)
    assert result.stdout.split() == [str(checkout / "kernels" / "__init__.py"), str(checkout / "csrc" / "build.py")]


def wheel_of(what: Path, **environment: str) -> Path:
    """The one wheel that pip makes of a checkout or an sdist."""
    out = what.parent / "wheels"
    shutil.rmtree(out, ignore_errors=True)
    command = (*PIP, "wheel", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out, what)
    result = run(*command, cwd=what.parent, **environment)
    assert result.returncode == 0, result.stderr
    (wheel,) = out.iterdir()
    return wheel


def test_a_wheel_of_an_sdist_carries_the_sources(checkout: Path) -> None:
    """Without nvcc, and in a folder that knows no checkout."""
    result = run(sys.executable, "setup.py", "--quiet", "sdist", cwd=checkout)
    assert result.returncode == 0, result.stderr
    (sdist,) = (checkout / "dist").iterdir()
    with tarfile.open(sdist) as archive:
        assert {f"{sdist.name.removesuffix('.tar.gz')}/{name}" for name in SOURCES} <= set(archive.getnames())
    wheel = wheel_of(sdist)
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {f"mbv3fast/{name}" for name in SOURCES} == {name for name in names if name.startswith("mbv3fast/csrc/")}
    assert {"mbv3fast/kernels/__init__.py", "mbv3fast/py.typed"} <= names
    assert not any(name.startswith("mbv3fast/lib/") or "build" in Path(name).parts for name in names)


def test_a_wheel_with_a_library_is_of_its_platform(checkout: Path) -> None:
    """And for any Python; one that is made later without a library has none."""
    (checkout / "csrc" / "build.py").write_text(BUILDER)
    wheel = wheel_of(checkout)
    assert "-py3-none-linux_" in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        assert "mbv3fast/lib/libmbv3fast_cuda.so" in archive.namelist()
        (info,) = (name for name in archive.namelist() if name.endswith("/WHEEL"))
        assert "Root-Is-Purelib: false" in archive.read(info).decode()
    wheel = wheel_of(checkout, MBV3FAST_SKIP_CUDA="1")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert not any(name.startswith("mbv3fast/lib/") for name in archive.namelist())


def test_a_build_that_fails_fails_pip_with_the_compilers_words(checkout: Path) -> None:
    (checkout / "csrc" / "build.py").write_text(BUILDER)
    command = (*PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", checkout)
    result = run(*command, cwd=checkout.parent, FAILS="1")
    assert result.returncode != 0
    assert "error: the compiler fails:" in result.stdout + result.stderr
    assert "a.cu(1): error: b" in result.stdout + result.stderr


def test_an_editable_installation_builds_beside_the_sources(checkout: Path) -> None:
    (checkout / "csrc" / "build.py").write_text(BUILDER)
    target = checkout.parent / "site"
    command = (*PIP, "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation", "--target", target)
    result = run(*command, "--config-settings", "editable_mode=compat", "--editable", checkout, cwd=checkout.parent)
    assert result.returncode == 0, result.stderr
    assert (checkout / "mbv3fast" / "lib" / "libmbv3fast_cuda.so").is_file()


@pytest.mark.slow
@pytest.mark.skipif(bool(lacks_tools(emulated=True)), reason=lacks_tools(emulated=True))
def test_an_installed_package_builds_its_library(checkout: Path) -> None:
    """Of the sources that it carries, in a temporary folder; and says so."""
    site = checkout.parent / "site"
    with zipfile.ZipFile(wheel_of(checkout)) as archive:
        archive.extractall(site)
    mbv3fast = (sys.executable, "-m", "mbv3fast")
    result = run(*mbv3fast, "build", "--emulated", cwd=site)
    assert result.returncode == 0, result.stdout + result.stderr
    library = site / "mbv3fast" / "lib" / "libmbv3fast_emulated.so"
    assert result.stdout.endswith(f"built {library}, which MBV3FAST_EMULATE=1 loads\n")
    said = run(*mbv3fast, "doctor", cwd=site, MBV3FAST_EMULATE="1").stdout
    assert f"for the CPU, emulated: {library}" in said
    assert not (site / "build").exists()


def test_sources_are_all_that_is_there() -> None:
    """Or the tests above would compare with nothing."""
    assert {"csrc/CMakeLists.txt", "csrc/include/mbv3fast.h", "csrc/build.py", "csrc/library.cu"} < SOURCES
