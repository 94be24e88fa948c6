"""Tables of timed configurations: their lookup, and the tuner that writes them, without a GPU."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from benchmarks import candidates as trying
from benchmarks import tune as tuning
from benchmarks.candidates import LIMITS, MOST, WARPS, candidates, fits
from benchmarks.tune import Ask, Bench, Table, main, meta_plans, tune_step
from mbv3fast.kernels import tuned as tables
from mbv3fast.kernels.configs import HEURISTICS, Config
from mbv3fast.kernels.tuned import GROWS, complete, read, slug, tuned
from mbv3fast.ops import OPS
from mbv3fast.ops.target import Target, target_of
from mbv3fast.plan import Step

CHIP = "NVIDIA H100 80GB HBM3"
HEADER = {"gpu": CHIP, "date": "2026-01-01", "torch": "2.13.0", "triton": "3.7.1", "driver": 13000}
PRODUCT = complete("pointwise_conv", {"rows": 100, "outputs": 40, "inputs": 32, "itemsize": 2})
NEVER = float("inf")
META, CPU = torch.device("meta"), torch.device("cpu")


def product(**changes: int) -> Config:
    """A configuration that no heuristic chooses for PRODUCT."""
    return {"BLOCK_M": 16, "BLOCK_N": 16, "BLOCK_K": 16, "num_warps": 2, "num_stages": 2, **changes}


def entry(config: Config | None = None, **sizes: int) -> dict[str, Any]:
    config = product() if config is None else config
    return {"sizes": {**PRODUCT, **sizes}, "config": config, "us": 1.0, "heuristic_us": 2}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where tables are looked for."""
    monkeypatch.setattr(tables, "TABLES", tmp_path / "tables")
    monkeypatch.setattr(tuning, "TABLES", tmp_path / "tables")
    (tmp_path / "tables").mkdir()
    return tmp_path / "tables"


def write(folder: Path, ops: Any, **header: Any) -> Path:
    path = folder / "nvidia-h100-80gb-hbm3.json"
    path.write_text(json.dumps({**HEADER, **header, "ops": ops}), encoding="utf-8")
    return path


def test_committed_tables_are_whole() -> None:
    for path in Path(tables.__file__).with_name("tables").glob("*.json"):
        assert slug(read(path)["gpu"]) == path.stem


# Lookup


def test_exact_sizes_are_found(folder: Path) -> None:
    write(folder, {"pointwise_conv": [entry(), entry(product(BLOCK_K=32), inputs=64)]})
    assert tuned(CHIP, "pointwise_conv", PRODUCT) == product()
    assert tuned(CHIP, "pointwise_conv", {**PRODUCT, "inputs": 64}) == product(BLOCK_K=32)
    for other in ({"outputs": 41}, {"inputs": 33}, {"itemsize": 4}):
        assert tuned(CHIP, "pointwise_conv", {**PRODUCT, **other}) is None
    assert tuned(CHIP, "linear", PRODUCT) is None


@pytest.mark.parametrize(
    ("rows", "found"),
    [(0, None), (49, None), (50, 100), (141, 100), (142, 200), (200, 200), (400, 200), (401, None), (1500, 3000)],
)
def test_the_nearest_batch_within_a_factor_of_2_serves(folder: Path, rows: int, found: int | None) -> None:
    configs = {100: product(), 200: product(BLOCK_M=32), 3000: product(BLOCK_M=64)}
    write(folder, {"pointwise_conv": [entry(config, rows=timed) for timed, config in configs.items()]})
    assert tuned(CHIP, "pointwise_conv", {**PRODUCT, "rows": rows}) == (None if found is None else configs[found])


def test_of_two_as_near_the_smaller_serves(folder: Path) -> None:
    write(folder, {"pointwise_conv": [entry(product(BLOCK_M=32), rows=200), entry(rows=50)]})
    assert tuned(CHIP, "pointwise_conv", PRODUCT) == product()


def test_a_size_left_out_is_the_heuristics_default(folder: Path) -> None:
    sizes = {"images": 1, "out_height": 7, "out_width": 7, "channels": 64, "kernel": 3, "itemsize": 2}
    config = {**HEURISTICS["depthwise_conv"](**sizes), "num_warps": 2}
    one = {**entry(config), "sizes": sizes}
    write(folder, {"depthwise_conv": [one, {**one, "sizes": {**sizes, "squeeze": 16, "kernel": 5}}]})
    assert tuned(CHIP, "depthwise_conv", sizes) == tuned(CHIP, "depthwise_conv", {**sizes, "squeeze": 0}) == config
    assert tuned(CHIP, "depthwise_conv", {**sizes, "squeeze": 16}) is None
    assert tuned(CHIP, "depthwise_conv", {**sizes, "squeeze": 16, "kernel": 5}) == config
    assert tuned(CHIP, "depthwise_conv", {**sizes, "kernel": 5}) is None


def test_every_op_has_a_size_that_grows() -> None:
    assert GROWS.keys() == HEURISTICS.keys() == LIMITS.keys()


def test_another_chip_has_no_table(folder: Path) -> None:
    write(folder, {"pointwise_conv": [entry()]})
    assert tuned("", "pointwise_conv", PRODUCT) is None
    assert tuned("NVIDIA A100-SXM4-80GB", "pointwise_conv", PRODUCT) is None


def test_two_kernels_may_be_the_fastest(folder: Path) -> None:
    sizes = {"images": 1, "out_height": 7, "out_width": 7, "channels": 64, "outputs": 32, "kernel": 3, "itemsize": 2}
    write(folder, {"depthwise_project": [{**entry({}), "sizes": sizes}]})
    assert tuned(CHIP, "depthwise_project", sizes) == {}
    assert Target(chip=CHIP).config("depthwise_project", **sizes) == {}


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "Expecting": lambda folder: write(folder, {}).write_text("{"),
    "the table is": lambda folder: write(folder, {}).write_text("[]"),
    "author": lambda folder: write(folder, {}, author="me"),
    "driver is": lambda folder: write(folder, {}, driver="570"),
    "nvidia-a100.json": lambda folder: write(folder, {}, gpu="NVIDIA A100"),
    "ops has": lambda folder: write(folder, {"convolution": []}),
    "needs some of": lambda folder: write(folder, ["linear"]),
    "not a mapping": lambda folder: write(folder, {"linear": [{**entry(), "sizes": [1]}]}),
    "needs a list": lambda folder: write(folder, {"linear": {}}),
    "note": lambda folder: write(folder, {"pointwise_conv": [{**entry(), "note": ""}]}),
    r"\[1\].sizes.*pixels": lambda folder: write(folder, {"pointwise_conv": [entry(), entry(pixels=49)]}),
    "sizes.rows": lambda folder: write(folder, {"pointwise_conv": [entry(rows=0)]}),
    "config.*UNROLL": lambda folder: write(folder, {"pointwise_conv": [entry({**product(), "UNROLL": 2})]}),
    "config.*num_stages": lambda folder: write(folder, {"pointwise_conv": [entry({})]}),
    "power of 2": lambda folder: write(folder, {"pointwise_conv": [entry(product(BLOCK_M=48))]}),
    "config.BLOCK_N": lambda folder: write(folder, {"pointwise_conv": [entry({**product(), "BLOCK_N": True})]}),
    "microseconds": lambda folder: write(folder, {"pointwise_conv": [{**entry(), "us": float("nan")}]}),
}


@pytest.mark.parametrize("complaint", DAMAGE)
def test_a_damaged_table_is_named(folder: Path, complaint: str) -> None:
    DAMAGE[complaint](folder)
    with pytest.raises(ValueError, match=rf"(?s)nvidia-h100-80gb-hbm3\.json: .*{complaint}"):
        tuned(CHIP, "pointwise_conv", PRODUCT)


# Target


def test_overrides_come_first_then_the_interpreter_the_table_and_the_heuristic(folder: Path) -> None:
    write(folder, {"pointwise_conv": [entry()]})
    chosen = product(num_stages=4)
    heuristic = HEURISTICS["pointwise_conv"](**PRODUCT)
    assert Target(chip=CHIP, overrides={"pointwise_conv": chosen}).config("pointwise_conv", **PRODUCT) == chosen
    assert Target(interpreted=True, overrides={"pointwise_conv": chosen}).config("pointwise_conv", **PRODUCT) == chosen
    assert "num_warps" not in Target(interpreted=True, chip=CHIP).config("pointwise_conv", **PRODUCT)
    assert Target(chip=CHIP, overrides={"linear": chosen}).config("pointwise_conv", **PRODUCT) == product()
    assert Target().config("pointwise_conv", **PRODUCT) == heuristic != product()
    assert isinstance(Target().overrides, MappingProxyType)


def test_a_gpus_target_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbv3fast.ops.target._properties", lambda _: (CHIP, 114, 9))
    target = target_of(torch.device("cuda", 0), pdl=True)
    assert (target.chip, target.sms, target.pdl, target.interpreted) == (CHIP, 114, True, False)
    assert target_of(CPU).chip == target_of(META).chip == ""


# Candidates


def planned_asks(images: int, dtype: torch.dtype, target: Target) -> list[Ask]:
    """What the steps of the plans ask `target`."""
    asks = []
    for plan in meta_plans(dtype):
        shapes = plan.shapes((images, 3, 224, 224))
        for step in plan.steps:
            inputs = {argument: shapes[value] for argument, value in step.inputs.items()}
            recorder = tuning.Recorder(*target)
            OPS[step.op].run(**trying.arguments(step, inputs, plan.dtype, META), target=recorder)
            asks += recorder.asks
    return asks


@pytest.mark.parametrize("images", [1, 8, 128])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_candidates(images: int, dtype: torch.dtype) -> None:
    asks = planned_asks(images, dtype, Target())
    asks.append(Ask("squeeze", {"images": images, "pixels": 49, "channels": 960, "squeezed": 240, "itemsize": 2}))
    asks.append(Ask("apply_scale", {"rows": images * 49, "channels": 960, "itemsize": 2}))
    asks.append(Ask("depthwise_conv", next(ask.sizes for ask in asks if ask.op == "depthwise_conv") | {"squeeze": 0}))
    assert {ask.op for ask in asks} == HEURISTICS.keys()
    for op, sizes in asks:
        first, *others = found = candidates(op, sizes)
        assert first == HEURISTICS[op](**sizes)
        assert fits(op, sizes, first, first)
        assert 5 <= len(found) <= MOST
        assert len({tuple(sorted(config.items())) for config in found}) == len(found)
        for config in filter(None, others):
            assert config.keys() == first.keys()
            check_limits(op, sizes, config, first)
        assert ({} in found) == (op == "depthwise_project")


def check_limits(op: str, sizes: Mapping[str, int], config: Config, heuristic: Config) -> None:
    for name, value in config.items():
        if name == "UNROLL":
            assert value in (1, sizes["kernel"], sizes["kernel"] ** 2)
        elif name == "num_stages":
            assert 2 <= value <= 4
        else:
            assert value & (value - 1) == 0 < value
    assert config["num_warps"] in WARPS
    for block, (least, most, covers) in LIMITS[op].items():
        assert least <= config[block] <= most
        assert config[block] < 2 * max(sizes[covers], least) or config[block] <= heuristic[block]


def test_few_threads_hold_no_large_block() -> None:
    """Or the compiler spends its time on spilling them."""
    sizes = {**PRODUCT, "rows": 100_000, "outputs": 960}
    found = candidates("pointwise_conv", sizes)
    assert (found[0]["BLOCK_M"], found[0]["BLOCK_N"], found[0]["num_warps"]) == (128, 128, 8)
    for config in found:
        assert config["BLOCK_M"] * config["BLOCK_N"] <= 128 * 32 * config["num_warps"]
    assert {config["num_warps"] for config in found} == {4, 8}


def test_where_two_kernels_are_better_there_is_no_choice() -> None:
    sizes = {"images": 1, "out_height": 7, "out_width": 7, "channels": 64, "outputs": 512, "kernel": 3, "itemsize": 2}
    assert candidates("depthwise_project", sizes) == [{}]


def test_the_chips_multiprocessors_count() -> None:
    sizes = {**PRODUCT, "rows": 10_000}
    assert candidates("pointwise_conv", sizes, 8)[0] == HEURISTICS["pointwise_conv"](**sizes, sms=8)
    assert candidates("pointwise_conv", sizes, 8)[0] != candidates("pointwise_conv", sizes)[0]


# The tuner


def run_dry(path: Path, *arguments: str) -> int:
    return main(["--dry-run", "--out", str(path), "--batches", "1", *arguments])


@pytest.fixture(scope="module")
def dry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of a whole dry run at batch 1."""
    path = tmp_path_factory.mktemp("dry") / "dry-run.json"
    assert run_dry(path) == 0
    return path


def test_a_dry_run_writes_a_table_that_is_read(dry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "TABLES", dry.parent)
    table = read(dry)
    assert table["gpu"] == "dry run"
    for op, entries in table["ops"].items():
        for timed in entries:
            assert tuned("dry run", op, timed["sizes"]) == timed["config"]
            won = timed["config"] != HEURISTICS[op](**timed["sizes"])
            most = timed["heuristic_us"] * (0.97 if won else 1) + 1e-3
            assert timed["us"] <= most, timed


def test_a_table_answers_all_that_plans_ask_since_they_have_it(dry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which is not what they ask without it: the parts of a squeeze follow from its configuration."""
    monkeypatch.setattr(tables, "TABLES", dry.parent)
    asks = planned_asks(1, torch.float16, Target(chip="dry run"))
    assert {ask.op for ask in asks} == HEURISTICS.keys() - {"squeeze", "apply_scale"}
    assert [ask for ask in asks if tuned("dry run", *ask) is None] == []
    without = planned_asks(1, torch.float16, Target())
    assert [ask for ask in without if ask.op == "excite" and tuned("dry run", *ask) is None] != []


def test_a_later_launch_is_timed_behind_what_was_found_for_the_first(tmp_path: Path) -> None:
    plan = meta_plans(torch.float16)[1]
    step = next(step for step in plan.steps if step.op == "depthwise_squeeze_excite")
    given = functools.partial(trying.arguments, step, {"x": (1, 16, 112, 112)}, plan.dtype)
    timed: list[Mapping[str, Config]] = []

    def timer(run: Any) -> float:
        timed.append(run.args[-1].overrides)
        return 1 / timed[-1].get("excite", {"BLOCK_C": 1})["BLOCK_C"] + timed[-1]["depthwise_conv"]["TILE_W"]

    tune_step(Bench(META, Target(), HEADER, timer), Table(tmp_path / "t.json", HEADER), step, given, NEVER)
    found = read(tmp_path / "t.json")["ops"]["depthwise_conv"][0]["config"]
    assert found["TILE_W"] == 4
    seconds = [overrides for overrides in timed if "excite" in overrides]
    assert len(seconds) >= 3
    assert all(overrides["depthwise_conv"] == found for overrides in seconds)


def test_a_second_run_times_nothing_again(dry: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    before = dry.read_bytes()
    monkeypatch.setattr(tuning, "invented_microseconds", None)
    assert run_dry(dry) == 0
    assert dry.read_bytes() == before
    assert "complete" in capsys.readouterr().out


def test_an_interrupted_run_keeps_what_it_had(dry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, timer, timed = tmp_path / "dry-run.json", tuning.invented_microseconds, []

    def interrupted(run: trying.Run) -> float:
        timed.append(run)
        if len(timed) == 50:
            raise KeyboardInterrupt
        return timer(run)

    monkeypatch.setattr(tuning, "invented_microseconds", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_dry(path)
    kept = read(path)["ops"]
    assert 2 <= sum(map(len, kept.values())) <= 5
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [path.name]
    assert run_dry(path) == 0
    assert {op: entries[: len(kept.get(op, ()))] for op, entries in read(path)["ops"].items() if op in kept} == kept
    assert read(path)["ops"] == read(dry)["ops"]


def test_out_of_time(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "dry-run.json"
    assert run_dry(path, "--minutes", "0") == 0
    assert not path.exists()
    assert "out of time" in capsys.readouterr().out


def test_a_table_of_other_versions_is_begun_anew(tmp_path: Path, capsys: Any) -> None:
    path = tmp_path / "table.json"
    Table(path, HEADER).add(Ask("pointwise_conv", PRODUCT), {name: entry()[name] for name in ENTRY})
    assert len(Table(path, HEADER)) == len(Table(path, {**HEADER, "date": "2026-02-02"})) == 1
    assert len(Table(path, {**HEADER, "torch": "2.14.0"})) == 0
    assert "begun anew" in capsys.readouterr().out
    assert Table(path, HEADER).find(Ask("pointwise_conv", PRODUCT)) == product()
    assert Table(path, HEADER).find(Ask("pointwise_conv", {**PRODUCT, "rows": 101})) is None


def test_what_is_refused(folder: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, complaint in {
        (): "needs a CUDA device",
        ("--batches", "1", "0"): "got 0",
        ("--dry-run",): "needs --out",
        ("--dry-run", "--out", str(folder / "nvidia-h100-80gb-hbm3.json")): "not in",
    }.items():
        assert main(arguments) == 1
        assert complaint in capsys.readouterr().err
    assert list(folder.iterdir()) == []


# What it times, with the reference for the kernels


ENTRY = ("config", "us", "heuristic_us")
HEURISTIC = {"BLOCK_M": 32, "BLOCK_N": 16, "BLOCK_K": 32, "num_warps": 4, "num_stages": 3}
Act = Callable[[Config, Tensor], Any]


class Stand:
    """A 1x1 convolution by its reference: `act` does something to its output, `times` are of configurations."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, path: Path, act: Act, times: Callable[[Config], float]) -> None:
        self.timed: list[Config] = []
        self.table, self.times = Table(path, HEADER), times
        reference = OPS["pointwise_conv"].reference

        def run(target: Target, **given: Any) -> Tensor:
            config = target.config("pointwise_conv", **PRODUCT)
            (out,) = reference(**given)
            if not out.is_meta:
                act(config, out)
            return out

        monkeypatch.setattr(OPS["pointwise_conv"], "run", run)

    def timer(self, run: Any) -> float:
        config = run.args[-1].overrides["pointwise_conv"]
        self.timed.append(config)
        return self.times(config)

    def tune(self) -> dict[str, Any]:
        """The entry that it gets."""
        tensors = {"weight": torch.empty(40, 32, 1, 1, device="meta"), "bias": torch.empty(40, device="meta")}
        step = Step("pointwise_conv", ("step",), {"x": "x"}, tensors, {"activation": "hardswish"})
        given = functools.partial(trying.arguments, step, {"x": (1, 32, 10, 10)}, torch.float32)
        bench = Bench(CPU, Target(), HEADER, self.timer)
        tune_step(bench, self.table, step, functools.cache(given), NEVER)
        ops = read(path)["ops"] if (path := self.table._path).exists() else {}
        return ops["pointwise_conv"][0] if ops else {}


def nothing(config: Config, out: Tensor) -> None: ...


def test_the_fastest_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand = Stand(monkeypatch, tmp_path / "t.json", nothing, lambda config: 10 - (config["num_warps"] == 2))
    assert stand.tune() == {"sizes": PRODUCT, "config": {**HEURISTIC, "num_warps": 2}, "us": 9, "heuristic_us": 10}
    assert HEURISTICS["pointwise_conv"](**PRODUCT) == HEURISTIC
    assert stand.timed[:-2] == candidates("pointwise_conv", PRODUCT)
    assert stand.timed[-2:] == [HEURISTIC, {**HEURISTIC, "num_warps": 2}]


def test_what_hardly_gains_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stand = Stand(monkeypatch, tmp_path / "t.json", nothing, lambda config: 10 - 0.2 * (config["num_warps"] == 2))
    assert stand.tune() == {"sizes": PRODUCT, "config": HEURISTIC, "us": 10, "heuristic_us": 10}


def test_luck_is_not(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The least of many times is the most wrong, so it is taken again."""
    luck = iter([1.0])
    stand = Stand(
        monkeypatch, tmp_path / "t.json", nothing, lambda config: next(luck, 10) if config["num_warps"] == 2 else 10
    )
    assert stand.tune()["config"] == HEURISTIC


@pytest.mark.parametrize("value", [1e-2, float("nan")])
def test_wrong_and_failing_candidates_are_dropped(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any, value: float
) -> None:
    def act(config: Config, out: Tensor) -> None:
        if config["num_warps"] == 2:
            out[0, 1, 2, 3] += value * out.abs().max()
        if config["num_warps"] == 8:
            raise RuntimeError("out of resource: registers")

    speeds = {2: 1.0, 4: 10.0, 8: 2.0}
    stand = Stand(monkeypatch, tmp_path / "t.json", act, lambda config: speeds[config["num_warps"]])
    assert stand.tune()["config"] == HEURISTIC
    assert {config["num_warps"] for config in stand.timed} == {4}
    reports = [line for line in capsys.readouterr().out.splitlines() if line.startswith("dropped: pointwise_conv rows")]
    assert len(reports) == 2
    assert "'num_warps': 2" in reports[0]
    assert "computes something else" in reports[0]
    assert "'num_warps': 8" in reports[1]
    assert "out of resource: registers" in reports[1]


def test_an_output_that_is_not_written_looks_wrong() -> None:
    """Memory that a right output lay in is handed on with nothing of it."""
    right, memory = torch.ones(3), torch.ones(3)
    assert trying.fault(lambda: (memory,), (right,)) == ""
    assert trying.fault(lambda: (memory,), (right,)) == "computes something else"


def test_a_failing_heuristic_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any) -> None:
    def act(*_: Any) -> None:
        raise RuntimeError("out of memory")

    stand = Stand(monkeypatch, tmp_path / "t.json", act, lambda _: 1.0)
    assert stand.tune() == {}
    assert stand.table.failed == 1
    assert "failed: pointwise_conv rows=100" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(tmp_path: Path, capsys: Any) -> None:
    """The first steps; what is timed is right at whatever configuration."""
    path = tmp_path / "table.json"
    assert main(["--out", str(path), "--minutes", "0.5", "--batches", "2"]) == 0
    table = read(path)
    assert table["gpu"] == torch.cuda.get_device_name()
    assert table["ops"]["stem_conv"][0]["us"] > 0
    assert "computes something else" not in capsys.readouterr().out
