"""Plain docstrings as reStructuredText: `name: what it is` lines as a list, indented formulas as they stand."""

from __future__ import annotations

import inspect
import re
from collections.abc import Collection, Sequence

_CODE = re.compile(r"`([^`]+)`")
_SPECIAL = re.compile(r"[*|\\]|(?<=\w)_(?!\w)")  # emphasis, substitutions, escapes, references
_ERROR = re.compile(r"\b([A-Z]\w*Error)\b")


def rewrite(obj: object, lines: Sequence[str]) -> list[str]:
    """The docstring of `obj`, dedented `lines`, as reStructuredText."""
    names, out = known_names(obj), []
    for paragraph in _paragraphs(lines):
        if all(line.startswith("    ") for line in paragraph):
            out += ["::", "", *paragraph, ""]
            continue
        for part in _parts(paragraph, names):
            out += [_marked_up(part, names), ""]
    return out


def known_names(obj: object) -> set[str]:
    """Arguments of a function or of a class's constructor, and fields of a class."""
    fields = set(getattr(obj, "__annotations__", ())) if inspect.isclass(obj) else set()
    try:
        return fields | set(inspect.signature(obj).parameters)  # type: ignore[arg-type] # TypeError for what isn't callable
    except (TypeError, ValueError):
        return fields


def _paragraphs(lines: Sequence[str]) -> list[list[str]]:
    found: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            found[-1].append(line)
        elif found[-1]:
            found.append([])
    return [paragraph for paragraph in found if paragraph]


def _names(names: Collection[str]) -> str:
    """A pattern of one or several of them; of none where there are none."""
    one = "|".join(map(re.escape, sorted(names, key=len, reverse=True))) or r"(?!)"
    return rf"(?:{one})(?:, (?:{one}))*(?:: | and )"


def _parts(paragraph: Sequence[str], names: Collection[str]) -> list[str]:
    """A paragraph cut before each name that is explained, before what is returned and what is raised."""
    begins = re.compile(rf"{_names(names)}|(?:Returns|Raises)\b")
    parts: list[str] = []
    for line in paragraph:
        if begins.match(line) or not parts:
            parts.append(line)
        else:
            parts[-1] += " " + line.strip()
    cut = re.compile(rf"(?<=[.;]) (?={_names(names)}|Raises )")
    return [piece for part in parts for piece in cut.split(part)]


def _marked_up(part: str, names: Collection[str]) -> str:
    """Names that are explained in bold, as an item of a list where they begin it; errors and code as such."""
    pieces = _CODE.split(part)
    pieces[::2] = [_escaped(piece, names) for piece in pieces[::2]]
    pieces[1::2] = [f"``{piece}``" for piece in pieces[1::2]]
    text = re.sub(r"^(Returns|Raises)\b", r"**\1**", "".join(pieces))
    return f"* {text}" if re.match(_names(names), part) else text


def _escaped(text: str, names: Collection[str]) -> str:
    text = _SPECIAL.sub(lambda match: f"\\{match[0]}", text)
    text = _ERROR.sub(r"``\1``", text)
    return re.sub(r"(?<![\w`])(\w+)(?=(?:, \w+)*: )", lambda match: _bold(match[1], names), text)


def _bold(word: str, names: Collection[str]) -> str:
    return f"**{word}**" if word in names else word
