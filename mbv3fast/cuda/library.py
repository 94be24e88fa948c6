"""The library of CUDA kernels: where it is, loading it once, and why it can't serve a device."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import threading
from pathlib import Path

import torch

FOLDER = Path(__file__).parents[1] / "lib"
ENVIRONMENT = "MBV3FAST_EMULATE"
VERSION = 1  # MBV3FAST_VERSION in csrc/include/mbv3fast.h
_APART = ((8, 7), (10, 1))  # compute capabilities of chips for which code for others of their major version is not
_ON_A_CPU = f"; for a CPU, mbv3fast build --emulated and {ENVIRONMENT}=1"
_SOURCES = ("*.cu", "*.cuh", "*.inc", "include/*.h", "emulation/*.?pp")  # as CMakeLists.txt has them
_NEWER = (9, 0)  # from which chips want what earlier PTX lacks: clusters, dependent launches
_lock = threading.Lock()
_LOADED: dict[tuple[Path, bool], ctypes.CDLL | str] = {}


class KernelError(RuntimeError):
    """What a function of the library refused or met, or why there is no library; the message says what."""


def library() -> ctypes.CDLL:
    """The library, loaded at the first call. Raises KernelError where there is none to load."""
    found = _loaded()
    if isinstance(found, str):
        raise KernelError(found)
    return found


def check(code: int) -> None:
    """Raise KernelError with the library's words unless a function of it returned 0. Call it on the same thread."""
    if code != 0:
        raise KernelError(library().mbv3fast_error(code).decode(errors="replace"))


def lacks_library(device: torch.device) -> str:
    """Why the library can't serve tensors of this device; empty where it can."""
    if device.type == "cpu" and not emulated():
        return f"a CPU runs the CUDA kernels in emulation alone ({ENVIRONMENT}=1)"
    if device.type not in ("cpu", "cuda"):
        return f"no kernels for {device.type}"
    if device.type == "cuda" and emulated():
        return f"the emulation of CUDA kernels ({ENVIRONMENT}=1) runs on a CPU"
    if device.type == "cuda" and torch.version.hip:
        return "no kernels for AMD"
    lack = lacks_loading()
    if lack or device.type == "cpu":
        return lack
    capability = torch.cuda.get_device_capability(device)
    if not covers(architectures(), capability):
        return f"the CUDA library is for {architectures()}, not for compute capability {capability[0]}.{capability[1]}"
    return ""


def lacks_loading() -> str:
    """Why there is no library to call; empty where there is."""
    found = _loaded()
    return found if isinstance(found, str) else ""


def architectures() -> str:
    """What the library has code for, as mbv3fast_architectures says: "80 90 90+PTX"; empty where emulated."""
    return str(library().mbv3fast_architectures().decode())


def library_sources() -> str:
    """A hash of the sources that the library was built of, as mbv3fast_sources says."""
    return str(library().mbv3fast_sources().decode())


@functools.cache
def sources_here() -> str:
    """The same of the sources that lie beside this package; empty where there are none."""
    folder = Path(__file__).parents[1] / "csrc"
    paths = sorted(path for pattern in _SOURCES for path in folder.glob(pattern))
    digests = "".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
    return hashlib.sha256(digests.encode()).hexdigest() if paths else ""


@functools.cache  # which every call of a model asks
def covers(architectures: str, capability: tuple[int, int]) -> bool:
    """Whether code for these architectures runs on a GPU as it must: that of its major version up to its minor one, or
    PTX, but not on a chip of 9.0 or later what is from before.
    """
    for name in architectures.split():
        number, _, ptx = name.partition("+")
        built = divmod(int(number.rstrip("a")), 10)
        if number.endswith("a") or (not ptx and (built in _APART or capability in _APART)):
            runs = built == capability
        else:
            later = bool(ptx) and (built >= _NEWER or capability < _NEWER)
            runs = built <= capability and (later or built[0] == capability[0])
        if runs:
            return True
    return False


@functools.cache
def emulated() -> bool:
    """Whether the kernels are emulated on the CPU, for tests; settled at the first call."""
    return os.environ.get(ENVIRONMENT) == "1"


def library_path() -> Path:
    """Where `mbv3fast build` puts the library, whether or not it is there."""
    return FOLDER / f"libmbv3fast_{'emulated' if emulated() else 'cuda'}.so"


def _loaded() -> ctypes.CDLL | str:
    """Settled at the first call; every launch asks, and so without a lock when it is."""
    place = FOLDER, emulated()
    found = _LOADED.get(place)
    if found is None:
        with _lock:
            found = _LOADED.get(place) or _load(library_path())
            _LOADED[place] = found
    return found


def _load(path: Path) -> ctypes.CDLL | str:
    """The library, or why it can't be called."""
    again = "mbv3fast build" + " --emulated" * emulated()
    if not path.is_file():
        return f"the CUDA library is not built ({again}{_ON_A_CPU * (not emulated())})"
    try:
        loaded = ctypes.CDLL(str(path))
    except OSError as error:
        return f"the CUDA library can't be loaded: {error}"
    try:
        version = loaded.mbv3fast_version()
        if version != VERSION:
            return f"{path} has version {version} of its interface, this package needs {VERSION} ({again})"
        _declare(loaded)
    except AttributeError as error:
        return f"the CUDA library is another one ({again}): {error}"
    return loaded


def _declare(loaded: ctypes.CDLL) -> None:
    """The types of the functions that concern the library itself; `mbv3fast_version` has ctypes' default ones."""
    loaded.mbv3fast_error.argtypes = (ctypes.c_int,)
    loaded.mbv3fast_error.restype = ctypes.c_char_p
    loaded.mbv3fast_emulated.argtypes = ()
    loaded.mbv3fast_emulate.argtypes = (ctypes.c_int, ctypes.c_uint64)
    loaded.mbv3fast_emulate.restype = None
    for text in (loaded.mbv3fast_architectures, loaded.mbv3fast_sources):
        text.argtypes, text.restype = (), ctypes.c_char_p
