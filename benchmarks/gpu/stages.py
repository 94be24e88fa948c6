"""What a run on a GPU consists of, most wanted first; each stage is commands with limits of time, and no code of ours
between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu import network
from benchmarks.gpu.stage import AT_ONCE, Stage, among, bench, capability, module, rows_folder, tool, watched

PLANS = (("triton", "layers"), ("cuda", "blocks"))  # backend and plan, of those that auto chooses
_HALF_ONLY = ("cuda",)  # backends that don't take float32
_SLOWEST = 2  # steps of a batch that are looked at with ncu
_SECTIONS = ("SpeedOfLight", "MemoryWorkloadAnalysis", "Occupancy", "WarpStateStats", "LaunchStats")


def stages(out: Path, dry: bool) -> list[Stage]:
    """Of a run whose results go to `out`; dry: the same stages on a CPU, tiny."""
    wanted, others = _batches(dry)
    return [
        _environment(dry),
        _build(dry),
        _plans("float16", dry),
        _tune("tune", out, "triton", ("1", "128"), 1.5, dry),
        _tune("tune-cuda", out, "cuda", ("1", "128"), 0.25, dry),
        _networks(out, wanted[0], dry),
        *network.first(out, dry),
        *(_networks(out, batch, dry) for batch in wanted[1:]),
        _steps(out, wanted[0], dry),
        _tests("tests", "layouts or bound or streams or threads or graph or own or shares or bits", dry),
        _sanitizer("memcheck", dry),
        _check(out, dry),
        *network.later(out, dry),
        *(_networks(out, batch, dry) for batch in others),
        *(_steps(out, batch, dry) for batch in (*wanted[1:], *others) if not dry),
        _plans("bfloat16", dry),
        _plans("float32", dry),
        _sanitizer("racecheck", dry),
        *_ops(out, dry),
        _ncu(out, dry),
        *_more_networks(out, dry),
        _bench("dispatch", out, "dispatch", "replay or freshness" if dry else "bench", 200, dry),
        *(() if dry else _last(out)),  # which would do again what others do
    ]


def _last(out: Path) -> Iterator[Stage]:
    yield network.other_cases(out)
    yield _sanitizer("initcheck", dry=False)
    yield _sanitizer("synccheck", dry=False)
    yield _tests("tests-all", "", dry=False)
    yield _tune("tune-cuda-more", out, "cuda", ("1", "128", "8", "32", "16"), 4.0, dry=False)
    yield _tune("tune-more", out, "triton", ("1", "128", "8", "32", "16"), 8.0, dry=False)


def _batches(dry: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Those of the networks that users ask for first, and later."""
    return ((1,), (2,)) if dry else ((1, 128), (8,))


def _environment(dry: bool) -> Stage:
    shown = () if dry else (("nvidia-smi",),)
    return Stage("environment", (*shown, module("mbv3fast", "doctor"), module("pytest", "--version", "--version")), 25)


def _build(dry: bool) -> Stage:
    """The CUDA library, for this GPU alone."""
    major, minor = capability()
    kind = ("--emulated",) if dry else ("--arch", f"{major}.{minor}")
    return Stage("build", (module("mbv3fast", "build", *kind),), 120 if dry else 80)


def _plans(dtype: str, dry: bool) -> Stage:
    """Every plan, at the batches that matter most; the first time a kernel runs it may hang, here alone."""
    checks = [
        (variant, "--dtype", dtype, "--batch", batch, "--backend", backend, "--plan", plan)
        for backend, plan in PLANS
        if dtype != "float32" or backend not in _HALF_ONLY
        for batch in ("1", "128", "8")
        for variant in ("large", "small")
    ]
    if dry:
        small = ("small", "--dtype", "float32", "--batch", "1", "--size", "32", "--backend", "auto")
        checks = [small] if dtype == "float32" else []
    commands = tuple(module("benchmarks.gpu.check_plan", *check) for check in checks)
    return Stage(f"plans-{dtype}", commands, 100, AT_ONCE, "" if commands else "the CPU's plan is of float32")


def _tests(name: str, chosen: str, dry: bool) -> Stage:
    parallel = () if dry else ("-n", str(AT_ONCE))
    some = ("-k", chosen) if chosen else ()
    files = ("tests/test_gpu.py", "tests/test_gpu_compilers.py")
    return Stage(name, (module("pytest", *files, "-q", *parallel, *some),), 120 if chosen else 500)


def _check(out: Path, dry: bool) -> Stage:
    """What lets `auto` choose the CUDA plan on GPUs of this capability, once the file is committed."""
    command = module("mbv3fast", "doctor", "--check", "--plan", "blocks", "--commit", str(out / "cleared.json"))
    return Stage("check", (command,), 200, lacks="no GPU to try a plan on" if dry else "")


def _tune(name: str, out: Path, backend: str, batches: tuple[str, ...], minutes: float, dry: bool) -> Stage:
    """Into the kernels' own tables, so that what is timed afterwards runs by them."""
    minutes = 0.1 if dry else minutes
    only = ("--dry-run", "--out", str(out / f"{name}.json")) if dry else ()
    options = "--backend", backend, "--minutes", str(minutes), "--batches", *batches
    command = module("benchmarks.tune", *options, *only)
    return Stage(name, (command,), 60 * minutes + 30)


def _bench(name: str, out: Path, suite: str, chosen: str, limit: float, dry: bool) -> Stage:
    return Stage(name, bench(name, out, suite, chosen, limit, dry), limit)


_OURS = f"(mbv3fast- and not {network.CONTENDER})"
_QUICK = f"{_OURS} or torchvision or timm or reduce-overhead or TensorRT or ONNX"  # to be ready
_SLOW = ("JAX", "max-autotune", "compile-default")
_OTHERS = [f"float16-{batch}-224" for batch in (2, 4, 16, 32, 64, 256, 512)]
_OTHERS += [f"bfloat16-{batch}-224" for batch in (1, 128, 8, 2, 4, 16, 32, 64, 256, 512)]
_OTHERS += [f"float32-{batch}-224" for batch in (1, 128, 8)]
_OTHERS += [f"float16-{batch}-{size}" for size in (160, 320) for batch in (1, 128, 8)]


def _networks(out: Path, batch: int, dry: bool) -> Stage:
    """What users ask first: float16 at 224x224, Large and Small, beside those that are soon ready."""
    if dry:  # all contenders once, on the Small
        case = f"float32-{batch}-32"
        chosen = (
            f"{case} and (small or mbv3fast- or torchvision)" if batch == 1 else among(case, "mbv3fast- or torchvision")
        )
        return _bench(f"networks-{batch}", out, "networks", chosen, 150, dry)
    return _bench(f"networks-{batch}", out, "networks", among(f"float16-{batch}-224", _QUICK), 150, dry)


def _more_networks(out: Path, dry: bool) -> Iterator[Stage]:
    """The contenders that take minutes to be ready; then all cases but those of `_networks`."""
    for contenders in () if dry else _SLOW:
        for batch in (1, 128, 8):
            chosen = among(f"float16-{batch}-224", contenders)
            yield _bench(f"networks-{batch}-{contenders}", out, "networks", chosen, 500, dry)
    for case in () if dry else _OTHERS:
        chosen = among(case, f"not max-autotune and not {network.CONTENDER}")
        yield _bench(f"networks-{case}", out, "networks", chosen, 300, dry)


def _steps(out: Path, batch: int, dry: bool) -> Stage:
    case = f"small-float32-{batch}-32 and (features_0 or features_1 or classifier)" if dry else f"float16-{batch}-224"
    return _bench(f"steps-{batch}", out, "steps", case, 120, dry)


def _ops(out: Path, dry: bool) -> Iterator[Stage]:
    for op in ("depthwise_conv", "squeeze_excite", "pointwise_conv", "depthwise_project", "depthwise_excite_project"):
        if not dry:
            yield _bench(f"ops-{op}", out, "ops", f"ops[{op}", 300, dry)
    if dry:
        yield _bench("ops", out, "ops", "float32 and squeeze_excite", 90, dry)


def _sanitizer(kind: str, dry: bool) -> Stage:
    dtype, backends = ("float32", ["auto"]) if dry else ("float16", [name for name, _ in PLANS])
    commands = tuple(watched(kind, dry, "--dtype", dtype, "--backend", backend) for backend in backends)
    return Stage(kind, commands, 150 * len(backends), lacks=tool("compute-sanitizer", dry)[1])


def _ncu(out: Path, dry: bool) -> Stage:
    """The kernels of the slowest steps, once they are known; not their first calls, which compile."""
    program, lacks = tool("ncu", dry)
    asked = [part for section in _SECTIONS for part in ("--section", section)]
    asked += ["--clock-control", "none", "--csv", "--page", "details"]
    asked += ["--kernel-name", "regex:^_", "--launch-skip", "4", "--launch-count", "3"]

    def commands() -> Iterator[tuple[str, ...]]:
        for number, row in enumerate(_slowest(rows_folder(out))):
            named = [str(part) for name in ("batch", "size", "dtype", "index") for part in (f"--{name}", row[name])]
            watched = () if dry else (program, *asked, "--log-file", str(out / f"ncu-{number}.csv"))
            yield (*watched, *module("benchmarks.gpu.run_step", row["variant"], *named))

    return Stage("ncu", (), 120, lacks=lacks, late=commands)


def _slowest(folder: Path) -> list[dict[str, Any]]:
    """The steps that took longest, of those that were timed, batch by batch; of one op the slowest alone."""
    found: list[dict[str, Any]] = []
    for path in sorted(folder.glob("steps-*.json")):
        rows = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
        by_op: dict[str, dict[str, Any]] = {}
        for row in sorted(rows, key=lambda row: -row["stats"]["median"]):
            by_op.setdefault(row["extra_info"]["op"], row["extra_info"])
        found += list(by_op.values())[:_SLOWEST]
    return found
