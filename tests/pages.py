"""The project's pages in Markdown, and what stands in them: links, headings, blocks of code."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("markdown_it")  # with Sphinx's reader of Markdown

from markdown_it import MarkdownIt
from markdown_it.token import Token

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
_READER = MarkdownIt("commonmark").enable("table")


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def links(text: str) -> list[str]:
    """The targets of a page's links, in order."""
    inner = (child for token in _READER.parse(text) for child in token.children or ())
    return [str(child.attrs["href"]) for child in inner if child.type == "link_open"]


def anchors(text: str) -> set[str]:
    """What GitHub makes of a page's headings: those that come again get a number."""
    found: set[str] = set()
    for heading in _headings(_READER.parse(text)):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while (anchor := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(anchor)
    return found


def _headings(tokens: list[Token]) -> Iterator[str]:
    for opened, inline in itertools.pairwise(tokens):
        if opened.type == "heading_open":
            yield "".join(child.content for child in inline.children or ())


def blocks(path: Path, language: str) -> list[str]:
    """The blocks of code of a language."""
    tokens = _READER.parse(path.read_text(encoding="utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info == language]
