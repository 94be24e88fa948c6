"""Sphinx's settings: `make docs`.

The repository itself is the source folder, so that a link which works on GitHub works here, README and CONTRIBUTING
among its targets; what is linked and is no page becomes a download.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from docs.docstrings import rewrite  # noqa: E402
from docs.figures import FIGURES  # noqa: E402

project = "mbv3fast"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
root_doc = "docs/index"
include_patterns = ["docs/**", "*.md"]
exclude_patterns = [path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "docs"]
myst_heading_anchors = 4  # as GitHub has them
smartquotes = False  # which would change what is code
autodoc_typehints = "none"  # docstrings say shapes, dtypes and values
html_theme = "furo"
html_title = "mbv3fast"
html_static_path = ["_static"]
html_css_files = ["guide.css"]
html_show_sphinx = html_show_copyright = False
templates_path = ["_templates"]
html_additional_pages = {"index": "moved.html"}  # the first page is docs/index.html, as it lies in the repository
PICTURE = re.compile(r"<!-- picture: (\w+) -->")
OTHERS = "<!-- pages that are not named here -->"


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _list_others)
    app.connect("source-read", _draw)
    app.connect("autodoc-process-docstring", _read_plainly)


def _list_others(app: Any, docname: str, source: list[str]) -> None:
    """Pages that the index doesn't name are listed at its marker, so that a new page needs no line there."""
    if docname != root_doc:
        return
    named = {line.strip() for line in source[0].splitlines()}
    others = (name for name in sorted(app.env.found_docs - {root_doc}) if re.match(r"docs/[^/]+$", name))
    lines = [line for name in others if (line := name.removeprefix("docs/")) not in named]
    toctree = "\n".join(["```{toctree}", *lines, "```"]) if lines else ""
    source[0] = source[0].replace(OTHERS, toctree)


def _draw(_app: Any, _docname: str, source: list[str]) -> None:
    """Pictures in place of the comments that name them, which GitHub doesn't show."""
    source[0] = PICTURE.sub(lambda match: f"```{{raw}} html\n{FIGURES[match[1]]()}\n```", source[0])


def _read_plainly(_app: Any, _what: str, _name: str, obj: object, _options: Any, lines: list[str]) -> None:
    lines[:] = rewrite(obj, lines)
