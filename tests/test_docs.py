"""The guide: it builds without a warning, has all that is public, and says of kernels what the code makes of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

import mbv3fast
from mbv3fast import ops, weights
from mbv3fast.cli.demo import read_sheet
from mbv3fast.fast import FusedFeatureExtractor, FusedMobileNetV3
from tests.pages import PAGES, ROOT, blocks

pytest.importorskip("sphinx")  # `make` installs all three, where Python is 3.11 or later
pytest.importorskip("myst_parser")
pytest.importorskip("furo")

from docs import tables
from docs.docstrings import rewrite
from docs.figures import FIGURES

KERNELS = [path for path in PAGES if path.parent.name == "kernels" and path.stem != "index"]
LETTER = {"": 5.4, "small": 4.6, "head": 6.2}  # pixels that letters take, more or less
INTERNAL = {"forward", "train", "service", "plan_name", "backend", "cuda_graphs", "micro_batch", "unsaid"}


def sphinx(source: Path, out: Path, builder: str = "html") -> subprocess.CompletedProcess[str]:
    """As `make docs` calls it."""
    strict = ("--quiet", "--fail-on-warning", "--keep-going", "--nitpicky", "--fresh-env")
    where = ("-c", source / "docs", "-d", out / "doctrees", "-b", builder, source, out)
    command = [sys.executable, "-m", "sphinx", *strict, *map(str, where)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=source)


def public() -> Iterator[set[str]]:
    """Of all that is public the names that it may have in the reference."""
    for package in (mbv3fast, weights, ops):
        for name in set(package.__all__) - {"weights", "__version__", "OPS"}:
            yield {f"{package.__name__}.{name}", f"mbv3fast.{name}"}
    models = FusedMobileNetV3, FusedFeatureExtractor
    for part in {part for model in models for part in model.__mro__ if part.__module__.startswith("mbv3fast")}:
        for name in {name for name in vars(part) if not name.startswith("_")} - INTERNAL:
            yield {f"mbv3fast.fast.{model.__name__}.{name}" for model in models}


def test_the_guide_builds_and_has_all_that_is_public(tmp_path: Path) -> None:
    result = sphinx(ROOT, tmp_path)
    assert result.returncode == 0, result.stderr
    for page in PAGES:
        assert (tmp_path / page.relative_to(ROOT)).with_suffix(".html").is_file()
    for page in KERNELS:
        html = (tmp_path / page.relative_to(ROOT)).with_suffix(".html").read_text(encoding="utf-8")
        assert html.count('<svg class="figure"') == 1, page
    assert "docs/index.html" in (tmp_path / "index.html").read_text(encoding="utf-8")
    documented = "".join(path.read_text(encoding="utf-8") for path in (tmp_path / "docs" / "api").glob("*.html"))
    named = set(re.findall(r'<dt class="sig[^>]* id="([\w.]+)"', documented))
    assert not [names for names in public() if not names & named]
    assert "<strong>fc1_weight</strong>: [S, C]" in documented, "arguments are a list"


def test_what_is_wrong_is_a_warning(tmp_path: Path) -> None:
    """A link, an anchor, a file and a page's own name."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("api", "kernels", "__pycache__"))
    (tmp_path / "mbv3fast").symlink_to(ROOT / "mbv3fast")
    index = "# A\n\n[a](b.md) [b](#c) [c](../README.md#d) [d](../e.cu)\n\n<!-- pages that are not named here -->\n"
    for page in (tmp_path / "docs").glob("*.md"):
        page.unlink()
    (tmp_path / "docs" / "index.md").write_text(index)
    (tmp_path / "docs" / "found.md").write_text("# Found by itself\n")
    (tmp_path / "README.md").write_text("# E\n")
    result = sphinx(tmp_path, tmp_path / "out", builder="dummy")
    assert result.returncode == 1
    for words in ("'b.md'", "'c'", "'d'", "'../e.cu'", "README.md: WARNING: document isn't included in any toctree"):
        assert words in result.stderr
    assert result.stderr.count("WARNING") == 5


def test_tables_are_what_the_code_makes() -> None:
    """`make docs-tables` writes them."""
    pytest.importorskip("triton")
    assert not [path.name for path, _ in tables.stale()]
    for page in KERNELS:
        text = page.read_text(encoding="utf-8")
        assert text.count("<!-- predicted: ") == text.count("<!-- compiled: ") == 1
    stem = (tables.PAGES / "stem_conv.md").read_text(encoding="utf-8")
    for right, wrong in ((" 392 |", " 393 |"), ("| 52 |", "| 53 |")):
        assert tables.written(stem.replace(right, wrong)) == stem != stem.replace(right, wrong)


def test_every_picture_is_whole_and_asked_for_once() -> None:
    asked = [name for page in PAGES for name in re.findall(r"<!-- picture: (\w+) -->", page.read_text("utf-8"))]
    assert sorted(asked) == sorted(FIGURES)
    for name, draw in FIGURES.items():
        picture = ElementTree.fromstring(draw())
        left, _, width, _ = map(float, picture.attrib["viewBox"].split())
        texts = [part for part in picture if part.tag == "text"]
        assert len(texts) > 10
        for text in texts:
            reach = LETTER[text.attrib["class"]] * len(text.text or "")
            begins = (
                float(text.attrib["x"]) - {"start": 0, "middle": reach / 2, "end": reach}[text.attrib["text-anchor"]]
            )
            assert left <= begins < begins + reach <= left + width, f"{name}: {text.text} sticks out"


def documented(x: int, weight: int, bias: int, residual: int) -> None:
    """x * weight, of a kind.

    x: [N, C], as `other_op` takes it,
        and more. weight: [S, C], bias: [S] of x's dtype; residual: none.

        y = x * 2

    Returns what tf_* models do. Raises ValueError for a wrong one.
    """


def test_docstrings_become_lists() -> None:
    lines = (documented.__doc__ or "").splitlines()
    dedented = [lines[0], *(line.removeprefix("    ") for line in lines[1:])]
    assert [line for line in rewrite(documented, dedented) if line] == [
        r"x \* weight, of a kind.",
        "* **x**: [N, C], as ``other_op`` takes it, and more.",
        "* **weight**: [S, C], **bias**: [S] of x's dtype;",
        "* **residual**: none.",
        "::",
        "    y = x * 2",
        r"**Returns** what tf\_\* models do.",
        "**Raises** ``ValueError`` for a wrong one.",
    ]


def test_environment_variables_are_those_that_are_read() -> None:
    sources = [*(ROOT / "mbv3fast").glob("**/*.py"), *(ROOT / "csrc").glob("*.py"), ROOT / "setup.py"]
    read = {name for path in sources for name in re.findall(r'"(MBV3FAST_\w+)"', path.read_text(encoding="utf-8"))}
    table = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8").split("## Environment variables")[1]
    assert set(re.findall(r"`(MBV3FAST_\w+)` \|", table)) == read


PROGRAMS = [
    pytest.param("docs/start.md"),
    pytest.param("docs/backbones.md"),
    pytest.param("docs/cpu.md", marks=pytest.mark.slow),
    pytest.param("docs/export.md", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_code_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One block after another, where there are images of digits."""
    if name == "docs/cpu.md":
        for peer in ("onnxscript", "onnxruntime", "openvino"):
            pytest.importorskip(peer)
    monkeypatch.chdir(tmp_path)
    digits, _ = read_sheet()
    digits[0].save("digit.png")
    (tmp_path / "photos").mkdir()
    for number, digit in enumerate(digits[:3]):
        digit.save(tmp_path / "photos" / f"{number}.png")
    if name == "docs/export.md":
        for file in ("small.pt2", "small.onnx"):
            mbv3fast.export(mbv3fast.load("digits").eval(), file, size=(64, 64))
    namespace: dict[str, object] = {}
    for block in blocks(ROOT / name, "python"):
        exec(compile(block, name, "exec"), namespace)
    if name == "docs/start.md":
        assert namespace["labels"] == ["0", "1", "2"]
        assert mbv3fast.load("student.safetensors").num_classes == 4
