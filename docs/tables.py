"""The tables of docs/kernels/*.md and docs/network.md: predicted ones, and what compilers say.

    python -m docs.tables            # writes them
    python -m docs.tables --check    # says whether they are so already

They stand behind the markers `<!-- predicted: NAME -->`, `<!-- compiled: NAME -->` and `<!-- stages: NAME -->`, up to
`<!-- end of table -->`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from click.testing import CliRunner

from docs.compiled import compiled
from docs.predictions import PREDICTED
from mbv3fast.cli import main as main_command

_COUNTED = "Counted for an H100 in float16, nothing is measured ([how to read it](index.md#how-the-tables-are-read)):"
PAGES = Path(__file__).parent / "kernels"
NETWORK = Path(__file__).parent / "network.md"
_SECTION = re.compile(r"<!-- (predicted|compiled|stages): ([\w-]+) -->\n.*?<!-- end of table -->", re.DOTALL)


def written(text: str) -> str:
    """A page with the tables that its markers ask for. Raises KeyError for a section that there isn't."""
    return _SECTION.sub(_section, text)


def _section(match: re.Match[str]) -> str:
    kind, name = match[1], match[2]
    if kind == "stages":
        table = CliRunner().invoke(main_command, ["stages", name, "--markdown"]).output
    else:
        table = f"{_COUNTED}\n\n{PREDICTED[name]()}" if kind == "predicted" else compiled(name)
    return f"<!-- {kind}: {name} -->\n\n{table}\n<!-- end of table -->"


def stale() -> Iterator[tuple[Path, str]]:
    """Pages whose tables aren't what the code makes, and how they should be."""
    for path in (*sorted(PAGES.glob("*.md")), NETWORK):
        text = path.read_text(encoding="utf-8")
        if (new := written(text)) != text:
            yield path, new


def main(arguments: Sequence[str]) -> int:
    check, pages = "--check" in arguments, list(stale())
    for path, text in pages:
        print(f"{path}: {'its tables are others: python -m docs.tables' if check else 'written'}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return int(check and bool(pages))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
