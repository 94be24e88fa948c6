"""The stages of the network in one launch, which is timed where it was right; apart, so that no other plan's wait if it
hangs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.stage import AT_ONCE, Stage, among, bench, capability, either, module, tool, watched
from mbv3fast.backend import lacks_clusters

CONTENDER = "mbv3fast-network"
CHECK = "network-plan"
_PLAN = ("--backend", "cuda", "--plan", "network")
_CASES = (("float16", "1"), ("float16", "128"), ("float16", "8"), ("bfloat16", "1"))  # dtype and batch
_TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")


def first(out: Path, dry: bool) -> Iterator[Stage]:
    """Whether it is right, what one image takes, and where that goes."""
    lacks, here = _lacks(dry), _here(dry)
    cases = [("small", "float16", "1")] if dry else [(v, d, b) for d, b in _CASES for v in ("large", "small")]
    sizes = ("--size", "32") if dry else ()
    checks = (
        module("benchmarks.gpu.check_plan", variant, "--dtype", dtype, "--batch", batch, *sizes, *_PLAN)
        for variant, dtype, batch in cases
    )
    yield Stage(CHECK, tuple((*here, *check) for check in checks), 80, AT_ONCE, lacks)
    if not dry:  # on a CPU `networks-1` has its reason
        yield _timed("networks-1-network", out, among("float16-1-224", CONTENDER), 100)
    pictures = (
        module("benchmarks.timeline", variant, *sizes, "--out", f"{path}.png", "--json", f"{path}.json")
        for variant in (("small",) if dry else ("large", "small"))
        for path in (out / f"timeline-{variant}",)
    )
    yield Stage("network-timeline", tuple((*here, *picture) for picture in pictures), 60, lacks=lacks, after=CHECK)


def later(out: Path, dry: bool) -> Iterator[Stage]:
    """Batches, and what compute-sanitizer says, be it right or not."""
    if not dry:
        for batch in (128, 8):
            yield _timed(f"networks-{batch}-network", out, among(f"float16-{batch}-224", CONTENDER), 100)
    tools = _TOOLS[:1] if dry else _TOOLS
    commands = tuple((*_here(dry), *watched(kind, dry, "--dtype", "float16", *_PLAN)) for kind in tools)
    lacks = _lacks(dry) or tool("compute-sanitizer", dry)[1]
    yield Stage("network-sanitizers", commands, 75 * len(tools), lacks=lacks)


def other_cases(out: Path) -> Stage:
    """Those of the suite that have no stage above; of 320x320 there are none, for which a Large has no room."""
    timed = " or ".join(either(f"float16-{batch}-224") for batch in (1, 128, 8))
    return _timed("networks-network", out, f"{CONTENDER} and not 320 and not ({timed})", 600)


def _timed(name: str, out: Path, chosen: str, limit: float) -> Stage:
    """Rows beside those of the same cases that other stages have."""
    commands = bench(name, out, "networks", chosen, limit, dry=False)
    return Stage(name, commands, limit, lacks=_lacks(dry=False), after=CHECK)


def _lacks(dry: bool) -> str:
    return "" if dry else lacks_clusters(capability())


def _here(dry: bool) -> tuple[str, ...]:
    """What goes before a command: a CPU emulates."""
    return ("env", "MBV3FAST_EMULATE=1") if dry else ()
