"""What pages promise: links and anchors that exist, as on GitHub, and commands that are there."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import unquote

import click
import pytest

from mbv3fast.cli import main
from tests.pages import PAGES, ROOT, anchors, blocks, links, name_of

OTHERS = {"pip", "tar", "cp", "mkdir", "cmake", "docker", "build/example/mbv3fast_example"}  # programs that aren't ours


def broken(path: Path, text: str) -> list[str]:
    """The links of a page, which lies at `path`, that lead nowhere."""
    found = []
    for link in links(text):
        target, _, anchor = unquote(link).partition("#")
        if re.match(r"\w+:", target):
            continue  # elsewhere
        place = (path.parent / target).resolve()
        there = not target or (place.is_relative_to(ROOT) and place.is_file())
        if not there or (anchor and anchor not in anchors(place.read_text(encoding="utf-8") if target else text)):
            found.append(link)
    return found


@pytest.mark.parametrize("path", PAGES, ids=name_of)
def test_links_lead_somewhere(path: Path) -> None:
    assert not broken(path, path.read_text(encoding="utf-8"))


def test_links_that_lead_nowhere_are_seen() -> None:
    right = (
        "[a](../README.md) [b](../README.md#on-a-gpu) [c](https://x.org/y) [d](#two) [e](#two-1)\n## Two\n## `Two`!\n"
    )
    assert broken(ROOT / "docs" / "x.md", right) == []
    wrong = (
        "[a](README.md) ![no link](b.png) [c](../README.md#on-a-gp) [d](../../x.md) [e](#two-2) [f](../docs)\n`[g](h)`"
    )
    assert len(broken(ROOT / "docs" / "x.md", wrong)) == 5


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell's lines, as words, without what is set for them alone."""
    for line in text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word in ("&&", "|", ";"):
                if words:
                    yield words
                words = []
            elif words or not re.match(r"\w+=", word):
                words.append(word)


def refused(words: Sequence[str]) -> str:
    """What a command names that there isn't; empty where all is there."""
    program, *arguments = words
    program = program.removeprefix(".venv/bin/")
    if program == "mbv3fast":
        return _refused_by_cli(arguments)
    if program == "make":
        rules = (ROOT / "Makefile").read_text(encoding="utf-8")
        return "" if all(re.search(rf"^{name}:", rules, re.M) for name in arguments) else f"make has no {arguments}"
    if program == "python" and arguments[:1] == ["-m"]:
        return _refused_by_module(*arguments[1:])
    if program == "python":
        return "" if not arguments or (ROOT / arguments[0]).is_file() else f"{arguments[0]} is not there"
    if program == "pytest":
        paths = (word for word in arguments if "/" in word and "=" not in word)
        return "".join(f"{path} is not there" for path in paths if not (ROOT / path).exists())
    return "" if program in OTHERS else f"{program} is no program that pages may use"


def _refused_by_cli(arguments: Sequence[str]) -> str:
    name, *rest = arguments
    command = main.commands.get(name)
    if command is None:
        return f"mbv3fast has no {name}"
    options = {option: param for param in command.params for option in param.opts if isinstance(param, click.Option)}
    for word, value in itertools.pairwise([*rest, ""]):
        if word.startswith("-") and word not in options:
            return f"mbv3fast {name} has no {word}"
        kind = options[word].type if word in options else None
        if isinstance(kind, click.Choice) and value not in kind.choices:
            return f"mbv3fast {name} {word} takes no {value}"
    models = next((param.type for param in command.params if param.name == "model"), None)
    if isinstance(models, click.Choice) and "--model" not in options and rest[0] not in models.choices:
        return f"mbv3fast {name} takes no {rest[0]}"
    return ""


def _refused_by_module(module: str, *arguments: str) -> str:
    package = ROOT / module.partition(".")[0]
    if not (ROOT / module.replace(".", "/")).with_suffix(".py").is_file():
        return f"{module} is not there"
    sources = "".join(path.read_text(encoding="utf-8") for path in package.rglob("*.py"))
    unknown = (word for word in arguments if word.startswith("--") and f'"{word}"' not in sources)
    return "".join(f"{module} has no {word}" for word in unknown)


@pytest.mark.parametrize("path", [path for path in PAGES if blocks(path, "sh")], ids=name_of)
def test_commands_are_there(path: Path) -> None:
    found = [words for block in blocks(path, "sh") for words in commands(block)]
    assert found
    assert not [reason for words in found if (reason := refused(words))]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("mbv3fast clasify x.jpg", "mbv3fast has no clasify"),
        ("mbv3fast plan large --gpus h100", "mbv3fast plan has no --gpus"),
        ("mbv3fast plan large --gpu h101 # comment", "mbv3fast plan --gpu takes no h101"),
        ("A=1 mbv3fast plan medium", "mbv3fast plan takes no medium"),
        ("make docs && make dcs", "make has no ['dcs']"),
        ("python -m benchmarks.gpu_runs", "benchmarks.gpu_runs is not there"),
        ("python -m benchmarks.report --read x", "benchmarks.report has no --read"),
        ("python csrc/ptxas.pi", "csrc/ptxas.pi is not there"),
        ("pytest tests/kernel", "tests/kernel is not there"),
        ("rm -rf build", "rm is no program that pages may use"),
        ("mbv3fast bench large --batch 8 --device cuda:1", ""),
    ],
)
def test_commands_that_are_not_there_are_seen(line: str, reason: str) -> None:
    assert "".join(refused(words) for words in commands(line)) == reason
