"""What times depend on: the GPU and its driver, the CPU's cores, versions."""

from __future__ import annotations

import importlib.metadata
import platform
import subprocess
from collections.abc import Iterator
from typing import Any

import torch

from mbv3fast import __version__
from mbv3fast.cli.options import usable_cores

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
_PACKAGES = ("torch", "triton", "torchvision", "timm", "jax", "onnxruntime", "openvino", "torch_tensorrt")


def machine_info() -> dict[str, Any]:
    """Of this machine; not its name."""
    return {
        "gpu": _gpu(),
        "cores": usable_cores(),
        "versions": dict(_versions()),
    }


def _versions() -> Iterator[tuple[str, str]]:
    yield "python", platform.python_version()
    yield "mbv3fast", __version__
    for package in _PACKAGES:
        try:
            yield package, importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue


def _gpu() -> dict[str, str] | None:
    if DEVICE == "cpu":
        return None
    properties = torch.cuda.get_device_properties(0)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        driver = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        driver = ""
    capability = f"{properties.major}.{properties.minor}"
    return {"name": properties.name, "driver": driver or "unknown", "capability": capability}
