"""Builds the library of CUDA kernels with CMake and Ninja, for setup.py and for `mbv3fast build`.

Imports neither torch nor mbv3fast: where a wheel is built, neither is there.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, STDOUT

SOURCES = Path(__file__).resolve().parent
DEFAULT = ("80", "86", "87", "89", "90", "100", "120")  # and PTX for 9.0
ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"
_OLDEST = 80
_NAMES = {  # as torch's cpp_extension knows them, those that current compilers have
    "Turing": "7.5+PTX",
    "Ampere+Tegra": "8.7",
    "Ampere": "8.0 8.6+PTX",
    "Ada": "8.9+PTX",
    "Hopper": "9.0+PTX",
    "Blackwell+Tegra": "11.0",
    "Blackwell": "10.0 10.3 12.0 12.1+PTX",
}
_ARCHITECTURE = re.compile(r"(\d{1,2})\.?(\d)(a?)(\+PTX)?")
_COMPILERS = ("CXX", "CXXFLAGS", "CUDAHOSTCXX", "CUDAFLAGS", "LDFLAGS")  # which CMake reads once for a build folder
_STEP = re.compile(r"\[\d+/\d+\] .*/(\w+)\.cu\.o\n")
_FIGURES = re.compile(r"ptxas info|\s+\d+ bytes stack frame")
Say = Callable[[str], object]


class BuildError(RuntimeError):
    """What keeps the library from being built; where a compiler does, its first errors."""


def install(target: Path) -> Path | None:
    """What an installation does: build into `target` where nvcc is found, and say in a line what became of it.

    MBV3FAST_SKIP_CUDA=1 leaves it out. Raises BuildError where CUDA was asked for, by MBV3FAST_CUDA=1 or by
    TORCH_CUDA_ARCH_LIST, and fails.
    """
    by_name = _is_on("MBV3FAST_CUDA")
    if _is_on("MBV3FAST_SKIP_CUDA"):
        print("mbv3fast: without CUDA kernels, as MBV3FAST_SKIP_CUDA says")
        return None
    if find_nvcc() is None and not by_name:
        print("mbv3fast: no nvcc here, so without CUDA kernels; `mbv3fast build` adds them later")
        return None
    try:
        return build(target)
    except BuildError as error:
        if by_name or os.environ.get(ARCHITECTURES):
            raise
        print(f"mbv3fast: warning: installed without CUDA kernels, which couldn't be built: {error}", file=sys.stderr)
        return None


def build(
    target: Path,
    *,
    emulated: bool = False,
    arch: str | None = None,
    verbose: bool = False,
    options: Sequence[str] = (),
    folder: str | None = None,
    say: Say = print,
) -> Path:
    """Build the library into the folder `target`, where it appears whole or not at all, and return its path.

    arch: architectures in torch's format; else those of TORCH_CUDA_ARCH_LIST, or the default. options: more of CMake's.
    folder: the name of another one below build/csrc, which keeps a checkout's object files. say: takes the lines of
    progress; all that is printed where `verbose`. Raises BuildError.
    """
    if lack := lacks_tools(emulated):
        raise BuildError(lack)
    kind, nvcc = ("emulated", None) if emulated else ("cuda", find_nvcc())
    switch = "ON" if emulated else "OFF"
    settings = [f"-DMBV3FAST_EMULATED={switch}", "-DMBV3FAST_EXAMPLE=OFF", "-DMBV3FAST_TESTS=", *options]
    try:
        if nvcc is not None:
            names = ";".join(chosen_architectures(arch, offered_by(nvcc), say))
            settings += [f"-DCMAKE_CUDA_COMPILER={nvcc}", f"-DCMAKE_CUDA_ARCHITECTURES={names}"]
        with _build_folder(folder or kind, say) as place:
            _configure(place, settings, nvcc, say, verbose)
            _compile(place, say, verbose)
            return _place(place / f"libmbv3fast_{kind}.so", target)
    except OSError as error:
        raise BuildError(str(error)) from error


def lacks_tools(emulated: bool = False) -> str:
    """What is missing here to build the library with; empty where nothing is."""
    if sys.platform != "linux":
        return f"the library is built on Linux alone, not on {sys.platform}"
    if not emulated and find_nvcc() is None:
        return f"no nvcc, which the CUDA toolkit has: looked {_where_nvcc()}"
    compilers = os.environ.get("CXX", "").split()[:1] or ["c++", "g++", "clang++"]
    if not any(map(shutil.which, compilers)):
        return f"no C++ compiler: looked for {', '.join(compilers)}"
    for tool in ("cmake", "ninja"):
        if _find_tool(tool) is None:
            return f"no {tool} (pip install {tool})"
    return ""


def find_nvcc() -> str | None:
    """nvcc: what CUDACXX says, or of CUDA_HOME or CUDA_PATH, which outrank PATH, or of the usual place."""
    if os.environ.get("CUDACXX"):
        return shutil.which(os.environ["CUDACXX"])
    if home := os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"):
        return shutil.which("nvcc", path=Path(home) / "bin")
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def _where_nvcc() -> str:
    """Where `find_nvcc` has looked."""
    for name in ("CUDACXX", "CUDA_HOME", "CUDA_PATH"):
        if os.environ.get(name):
            return f"for what {name} says, {os.environ[name]}, and nowhere else"
    return "on PATH and in /usr/local/cuda"


def offered_by(nvcc: str) -> tuple[str, ...]:
    """The architectures that a compiler has, least first; none where it doesn't say."""
    said = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False)
    return tuple(sorted(set(re.findall(r"sm_(\d+)", said.stdout)), key=int))


def chosen_architectures(arch: str | None, offered: Collection[str] = (), say: Say = print) -> list[str]:
    """CMake's names of what to build for: `arch`, else TORCH_CUDA_ARCH_LIST, else what of the default is offered."""
    origin, wanted = (ARCHITECTURES, os.environ.get(ARCHITECTURES) or None) if arch is None else ("--arch", arch)
    if wanted is not None:
        return parse_architectures(wanted, origin, offered, say)
    names = [name for name in DEFAULT if not offered or name in offered]
    if not names:
        raise BuildError(f"this nvcc is too old: it has {', '.join(offered)}, the kernels need 80 or later")
    return [*(f"{name}-real" for name in names[:-1]), names[-1]]


def parse_architectures(wanted: str, origin: str, offered: Collection[str] = (), say: Say = print) -> list[str]:
    """CMake's names ("80-real", "90" with PTX) of a list in torch's format: "8.0 9.0+PTX", "8.0;9.0a", "Hopper".

    Such before 8.0, which the kernels need, are left out, since the variable is meant for other packages too. offered:
    those that nvcc has, if known. Raises BuildError.
    """
    items = wanted
    for name, meaning in _NAMES.items():
        items = items.replace(name, meaning)
    found: dict[tuple[int, str], bool] = {}  # number, kind: whether with PTX
    for item in re.split(r"[\s;,]+", items.strip(" ;,")):
        match = _ARCHITECTURE.fullmatch(item)
        if match is None:
            raise BuildError(f"{origin}: got {item!r}, needs architectures such as '8.0 9.0+PTX' or 'Hopper'")
        number, kind, ptx = match[1] + match[2], match[3], match[4]
        if int(number) < _OLDEST:
            say(f"{origin}: {item} is left out: the kernels need 8.0 or later")
            continue
        if offered and number not in offered:
            raise BuildError(f"{origin}: got {item!r}, which this nvcc doesn't have; it has {', '.join(offered)}")
        found[int(number), kind] = found.get((int(number), kind), False) or ptx is not None
    if not found:
        raise BuildError(f"{origin}: got {wanted!r}, needs one architecture of 8.0 or later")
    return [f"{number}{kind}{'' if found[number, kind] else '-real'}" for number, kind in sorted(found)]


def _is_on(name: str) -> bool:
    return os.environ.get(name, "0") not in ("", "0")


def _find_tool(name: str) -> str | None:
    """A tool of this Python's environment, which needn't be on PATH, or else of PATH."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)


@contextmanager
def _build_folder(name: str, say: Say) -> Iterator[Path]:
    """Where CMake builds: in a checkout a folder that stays, of one build at a time; elsewhere a temporary one."""
    import fcntl  # which Windows lacks

    if not (SOURCES.parent / "setup.py").is_file():
        with tempfile.TemporaryDirectory(prefix="mbv3fast-") as temporary:
            yield Path(temporary)
        return
    folder = SOURCES.parent / "build" / "csrc" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{name}.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another build in {folder}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield folder


def _configure(folder: Path, settings: Sequence[str], nvcc: str | None, say: Say, verbose: bool) -> None:
    """Run CMake; afresh where the folder is of other sources or compilers, which CMake would not see."""
    compilers = [str(nvcc and Path(nvcc).resolve()), *(os.environ.get(name, "") for name in _COMPILERS)]
    made_by = "\n".join([str(SOURCES), *compilers])
    note = folder / "made_by.txt"
    fresh = not note.is_file() or note.read_text(encoding="utf-8") != made_by
    note.unlink(missing_ok=True)
    if fresh:
        shutil.rmtree(folder / "ptxas", ignore_errors=True)
    command = [str(_find_tool("cmake")), "-S", str(SOURCES), "-B", str(folder), "-G", "Ninja", *["--fresh"] * fresh]
    code, output = _run([*command, f"-DCMAKE_MAKE_PROGRAM={_find_tool('ninja')}", *settings], say if verbose else None)
    if code != 0:
        output = _complaint(nvcc, folder) or output
        say(output.rstrip())
        raise BuildError(f"CMake can't set up the build:\n{first_errors(output)}")
    note.write_text(made_by, encoding="utf-8")


def _complaint(nvcc: str | None, folder: Path) -> str:
    """What nvcc says where it can't even compile an empty source, which CMake may keep to itself."""
    if nvcc is None:
        return ""
    (folder / "empty.cu").touch()
    host = ["-ccbin", os.environ["CUDAHOSTCXX"]] if os.environ.get("CUDAHOSTCXX") else []
    code, output = _run([nvcc, *host, "-c", str(folder / "empty.cu"), "-o", str(folder / "empty.o")], None)
    return output if code != 0 else ""


def _compile(folder: Path, say: Say, verbose: bool) -> None:
    """Run Ninja, and keep what ptxas says of each source in ptxas/, a file a source."""

    def progress(line: str) -> None:
        if verbose or not _FIGURES.match(line):
            say(line)

    code, output = _run([str(_find_tool("ninja")), "-C", str(folder), *["-v"] * verbose], progress)
    (folder / "ptxas").mkdir(exist_ok=True)
    for step in re.split(r"^(?=\[\d+/\d+\] )", output, flags=re.MULTILINE):
        match = _STEP.match(step)
        if match is not None:
            (folder / "ptxas" / f"{match[1]}.log").write_text(step[match.end() :], encoding="utf-8")
    if code != 0:
        raise BuildError(f"the compiler fails:\n{first_errors(output)}")


def _run(command: Sequence[str], say: Say | None) -> tuple[int, str]:
    """Run a command, saying its lines as they come. Its exit code, and all that it printed."""
    environment = {**os.environ, "NINJA_STATUS": "[%f/%t] "}
    lines = []
    with subprocess.Popen(command, stdout=PIPE, stderr=STDOUT, text=True, errors="replace", env=environment) as process:
        try:
            for line in process.stdout or ():
                lines.append(line)
                if say is not None:
                    say(line.rstrip("\n"))
        except BaseException:
            process.terminate()  # and its compilers, which Ninja then ends
            raise
    return process.returncode, "".join(lines)


def first_errors(output: str, most: int = 5) -> str:
    """The first lines of a compiler's output that tell of errors, or else the last ones."""
    lines = [line.rstrip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if re.search(r"(?<!CMake )\b(error|fatal)\b", line, re.IGNORECASE)]
    return "\n".join(errors[:most] or lines[-most:])


def _place(built: Path, target: Path) -> Path:
    target.mkdir(parents=True, exist_ok=True)
    place, temporary = target / built.name, target / f"{built.name}.{os.getpid()}.tmp"
    try:
        shutil.copy(built, temporary)
        temporary.replace(place)
    finally:
        temporary.unlink(missing_ok=True)
    return place
