"""The floors of the package: a module imports only from lower ones, or from its own package."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mbv3fast

ROOT = Path(mbv3fast.__file__).parent
# From the ground. A name covers the package's modules below it.
FLOORS = (
    ("launching", "tuned"),
    ("tables", "assets", "atomic", "_checkout", "_version", "gpus", "csrc"),
    ("kernels", "cuda"),
    ("config",),
    ("pyramid",),
    ("layers", "agreement", "preprocess", "torch_state", "opaque"),
    ("records",),
    ("clearance",),
    ("backend",),
    ("reference", "description"),
    ("torch_ops", "ops"),
    ("checks", "traffic", "calls"),
    ("model",),
    ("lraspp", "foreign"),
    ("weights",),
    ("fold", "freshness", "plan"),
    ("cluster",),
    ("lower", "engine", "graphs", "launches", "alternatives"),
    ("program", "timing", "cost"),
    ("steps", "ceilings"),
    ("disagreement",),
    ("selfcheck",),
    ("service",),
    ("serving",),
    ("bound",),
    ("fast",),
    ("factory", "acceleration", "deploy"),
    ("segmentation", "trial"),
    ("cli",),
    ("", "__main__"),  # the package's own face
)
HEIGHT = {name: height for height, floor in enumerate(FLOORS) for name in floor}
# What only one floor may know; the others must run without it.
GUESTS = {
    "click": "cli",
    "tqdm": "cli",
    "huggingface_hub": "weights",
    "pyarrow": "cli",
    "safetensors": "weights",
    "triton": "kernels",
}


def modules() -> dict[str, ast.Module]:
    """Dotted name below mbv3fast, "" for the package itself, and the parsed source."""
    found = {}
    for root, package in ((ROOT, ()), *((ROOT.parent / name, (name,)) for name in ("kernels", "csrc"))):
        for path in sorted(root.rglob("*.py")):
            parts = (*package, *path.relative_to(root).with_suffix("").parts)
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


MODULES = modules()


def imports(name: str) -> Iterator[str]:
    """The absolute names of all that a module imports, wherever in it; each with what is taken from it."""
    for node in ast.walk(MODULES[name]):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name: str) -> set[str]:
    """The modules of mbv3fast that a module imports, "" for names of the package itself."""
    found = set()
    for imported in imports(name):
        package, _, rest = imported.partition(".")
        if package == "mbv3fast":
            while rest not in MODULES:
                rest = rest.rpartition(".")[0]
            found.add(rest)
    return found


def part(name: str) -> str:
    return name.partition(".")[0]


def test_every_module_has_a_floor() -> None:
    assert {part(name) for name in MODULES} == set(HEIGHT)


@pytest.mark.parametrize("name", MODULES)
def test_no_import_runs_upwards_or_sideways(name: str) -> None:
    for imported in own_imports(name):
        allowed = HEIGHT[part(imported)] < HEIGHT[part(name)] or (part(imported) == part(name) != "")
        assert allowed, f"{name or 'mbv3fast'} imports {imported or 'mbv3fast'}"


def test_the_reading_finds_imports() -> None:
    """Of every form that the package uses, or the tests above would pass on nothing."""
    assert {"backend", "engine", "fold", "freshness", "lower", "model"} <= own_imports("serving")
    assert {"kernels.pointwise_conv", "reference"} <= own_imports("ops.pointwise_conv")
    assert "weights" in own_imports("")
    assert {"cli.plan", "cli.demo", "_version"} <= own_imports("cli")
    assert own_imports("config") == {"tables"}


def test_config_knows_the_standard_library_alone() -> None:
    for name in ("tables", "config"):
        assert {part(imported) for imported in imports(name)} - {"mbv3fast"} <= sys.stdlib_module_names
    assert len(list(imports("config"))) > 2


def test_what_builds_the_cuda_library_stands_alone() -> None:
    """Where wheels are built there is neither torch nor this package."""
    for name in ("csrc", "csrc.build", "csrc.ptxas"):
        assert {part(imported) for imported in imports(name)} <= sys.stdlib_module_names
    assert len(list(imports("csrc.build"))) > 5


@pytest.mark.parametrize("guest", GUESTS)
def test_third_parties_stay_on_their_floor(guest: str) -> None:
    users = {part(name) for name in MODULES if any(part(imported) == guest for imported in imports(name))}
    assert users == {GUESTS[guest]}


def test_importing_the_package_loads_nothing_optional() -> None:
    code = "import sys, mbv3fast; print(*(m for m in sys.argv[1:] if m in sys.modules))"
    guests = ("click", "huggingface_hub", "pyarrow", "torchvision", "timm", "sklearn", "mbv3fast.cli")
    guests += ("torch._dynamo", "torch._inductor.config", "torch.export._trace")  # seconds of PyTorch's own
    result = subprocess.run([sys.executable, "-c", code, *guests], capture_output=True, text=True, check=True)
    assert result.stdout.split() == []
