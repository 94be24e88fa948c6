"""Packaging that pyproject.toml can't say: which packages there are and where, and the library of CUDA kernels."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

from setuptools import Command, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.errors import CompileError

ROOT = Path(__file__).parent
BESIDE = {f"mbv3fast.{name}": name for name in ("kernels", "csrc") if (ROOT / name).is_dir()}
LIBRARY = Path("mbv3fast", "lib")


def builder() -> ModuleType | None:
    """csrc/build.py, loaded by itself: mbv3fast imports torch, which isn't there where wheels are built."""
    path = ROOT / "csrc" / "build.py"
    spec = importlib.util.spec_from_file_location("mbv3fast_build", path)
    if not path.is_file() or spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class BuildLibrary(Command):
    """Builds the library where nvcc is found (docs/build.md): into the wheel, or where editable beside the sources."""

    description = "build the library of CUDA kernels"
    user_options = ()
    editable_mode = False

    def initialize_options(self) -> None:
        self.build_lib = ""
        self.library: Path | None = None

    def finalize_options(self) -> None:
        if not self.build_lib:
            self.build_lib = self.get_finalized_command("build_py").build_lib

    def run(self) -> None:
        target = (ROOT if self.editable_mode else Path(self.build_lib)) / LIBRARY
        if not self.editable_mode:
            shutil.rmtree(target, ignore_errors=True)  # an earlier build's
        module = builder()
        if module is not None:
            try:
                self.library = module.install(target)
            except module.BuildError as error:
                raise CompileError(str(error)) from error

    def get_source_files(self) -> list[str]:
        return []  # they are package data

    def get_outputs(self) -> list[str]:
        return [] if self.library is None else [str(Path(self.build_lib) / LIBRARY / self.library.name)]

    def get_output_mapping(self) -> dict[str, str]:
        return {output: str(LIBRARY / Path(output).name) for output in self.get_outputs() if self.editable_mode}


class Build(build):
    sub_commands = (*build.sub_commands, ("build_library", None))


class Wheel(bdist_wheel):
    """For any Python; of this platform where the library is within."""

    def get_tag(self) -> tuple[str, str, str]:
        if self.get_finalized_command("build_library").library is None:
            return super().get_tag()
        self.root_is_pure = False
        return ("py3", "none", super().get_tag()[2])


setup(
    packages=sorted({*find_packages(include=["mbv3fast", "mbv3fast.*"]), *BESIDE}),
    package_dir=BESIDE,
    cmdclass={"build": Build, "build_library": BuildLibrary, "bdist_wheel": Wheel},
)
