"""Reports of benchmark results, from files made here: every number in them is invented."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from PIL import Image

from benchmarks.report import BEGIN, END, main
from benchmarks.reporting.charts import digits, duration
from benchmarks.reporting.rows import DRY, ResultsError, merge, read

H100 = {"name": "NVIDIA H100", "driver": "580.1", "capability": "9.0"}
NETWORK = {"suite": "networks", "device": "gpu", "variant": "large", "batch": 1, "size": 224, "dtype": "float16"}
STEP = {**NETWORK, "suite": "steps", "contender": "mbv3fast", "view": "device", "launches": 2}
CPU = {"device": "cpu", "dtype": "float32", "view": "latency"}


def row(us: float, contender: str = "mbv3fast", **extra: Any) -> dict[str, Any]:
    stats = {"median": us / 1e6, "iqr": us / 1e7, "q1": us / 1e6, "q3": us / 1e6}
    named = {**NETWORK, "view": "latency", "cache": None, "contender": contender}
    return {"name": "bench", "stats": stats, "extra_info": {**named, "p50": us / 1e6, "p99": us / 5e5, **extra}}


def refusal(contender: str, reason: str, **extra: Any) -> dict[str, Any]:
    return {**NETWORK, "view": "latency", "cache": None, "contender": contender, "reason": reason, **extra}


class Files:
    """Writes result files into a folder, and runs the report on them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.readme = folder, folder / "README.md"
        self.readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")

    def write(self, name: str, *rows: Any, refused: Any = (), day: int = 1, gpu: Any = H100, **machine: Any) -> Path:
        info = {"gpu": gpu, "cpu": {"brand_raw": "A CPU"}, "cores": 2, "versions": {"torch": "2.11"}, "dry_run": False}
        whole = {"datetime": f"2026-11-{day:02}T12:00:00", "machine_info": {**info, **machine}}
        path = self.folder / name
        path.write_text(json.dumps({**whole, "benchmarks": rows, "refused": list(refused)}))
        return path

    def report(self, *paths: Path) -> str:
        assert main([*map(str, paths), "--out", str(self.folder / "out")]) == 0
        return (self.folder / "out" / "report.md").read_text()

    def readme_of(self, *paths: Path, check: bool = False) -> int:
        options = ["--out", str(self.folder / "out"), "--readme", str(self.readme), *(["--check"] if check else [])]
        return main([*map(str, paths), *options])


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def below(text: str, title: str) -> list[str]:
    """The table under a title, without its second line."""
    lines = text.partition(f"{title}\n\n")[2].partition("\n\n")[0].splitlines()
    return [line.strip("| ") for line in (*lines[:1], *lines[2:])]


NETWORKS = (
    row(200, prepared_s=3.21),
    row(180, view="device", cache="warm"),
    row(260, view="device", cache="cold"),
    row(1234.5, "torchvision"),
    row(150, "faster | <peer>"),
    row(900, batch=8),
    row(800, batch=8, view="stream"),
    row(400, "torchvision", batch=8, view="stream"),
    row(2000, "timm", batch=8),
)


@pytest.mark.parametrize(
    ("value", "text"),
    [(12.345e-6, "12.3 us"), (0.5e-6, "0.500 us"), (999.6e-6, "1.00 ms"), (0.123456, "123 ms"), (1.2345, "1,230 ms")],
)
def test_durations(value: float, text: str) -> None:
    assert duration(value) == text
    assert digits(0) == "0"


def test_latency_at_batch_1(files: Files) -> None:
    text = files.report(files.write("a.json", *NETWORKS))
    assert below(text, "#### Large, float16, 224x224") == [
        "contender | p50 | p99 | ratio | device, warm L2 | its IQR | device, cold L2 | to prepare",
        r"faster \| &lt;peer> | 150 us | 300 us | 0.75x | - | - | - | -",
        "**mbv3fast** | 200 us | 400 us | 1.00x | 180 us | 18.0 us | 260 us | 3.21 s",
        "torchvision | 1.23 ms | 2.47 ms | 6.17x | - | - | - | -",
    ]


def test_by_batch(files: Files) -> None:
    text = files.report(files.write("a.json", *NETWORKS))
    assert below(text, "#### Large, float16, 224x224: time of a call, calls enqueued back to back") == [
        "contender | batch 1 | batch 8",
        "torchvision | - | 400 us",
        "**mbv3fast** | - | 800 us",
        "timm (latency) | - | 2.00 ms",
        r"faster \| &lt;peer> (latency) | 150 us | -",
    ]
    rates = below(text, "#### Large, float16, 224x224: images a second, calls enqueued back to back")
    assert rates[1:3] == ["torchvision | - | 20,000", "**mbv3fast** | - | 10,000"]


def test_ops(files: Files) -> None:
    op = {"suite": "ops", "variant": None, "size": None, "op": "depthwise_conv", "view": "device", "batch": 8}
    op |= {"bytes": 10**6, "macs": 10**7, "floor_s": 5e-6, "bound": "memory"}
    kinds = [("8x112x112", "warm", 10), ("8x16x16", "warm", 10), ("8x16x16", "cold", 20)]
    rows = [row(us, name, **op, shape=x, cache=cache) for x, cache, us in kinds for name in ("mbv3fast", "eager")]
    text = files.report(files.write("a.json", *rows))
    head = "shape | batch | **mbv3fast** | eager | GB/s | TFLOP/s | floor | bound | share"
    assert below(text, "#### depthwise_conv, float16, by the GPU's events, warm L2") == [
        head,
        "8x16x16 | 8 | 10.0 us | 10.0 us | 100 | 2.00 | 5.00 us | memory | 50%",
        "8x112x112 | 8 | 10.0 us | 10.0 us | 100 | 2.00 | 5.00 us | memory | 50%",
    ]
    assert below(text, "#### depthwise_conv, float16, by the GPU's events, cold L2") == [
        head,
        "8x16x16 | 8 | 20.0 us | 20.0 us | 50.0 | 1.00 | 5.00 us | memory | 25%",
    ]


def steps(cold: float = 20) -> list[dict[str, Any]]:
    return [
        row(us, **STEP, cache=cache, index=index, step=f"features.{index}", op="stem_conv", shape="1x3", floor_s=4e-6)
        for index in (10, 2)
        for cache, us in (("warm", 10), ("cold", cold))
    ]


def test_steps(files: Files) -> None:
    title = "#### Large, float16, 224x224, batch 1: mbv3fast, by the GPU's events"
    assert below(files.report(files.write("a.json", *steps())), title) == [
        "- | step | op | shape | warm | cold | floor | share, warm | share, cold | launches",
        "2 | features.2 | stem_conv | 1x3 | 10.0 us | 20.0 us | 4.00 us | 40% | 20% | 2",
        "10 | features.10 | stem_conv | 1x3 | 10.0 us | 20.0 us | 4.00 us | 40% | 20% | 2",
        "- | total | - | - | 20.0 us | 40.0 us | 8.00 us | 40% | 20% | 4",
    ]
    one_not_cold = files.report(files.write("a.json", *steps()[:-1]))
    assert below(one_not_cold, title)[-1] == "- | total | - | - | 20.0 us | - | 8.00 us | 40% | - | 4"


def test_refused_rows_are_listed_with_reasons(files: Files) -> None:
    refused = [refusal("JAX", "not\ninstalled", batch=n, view=v) for n in (1, 8, 32) for v in ("latency", "stream")]
    refused += [refusal("JAX", "hung", variant="small", batch=128), refusal("eager", "wrong", suite="ops", op="linear")]
    text = files.report(files.write("a.json", *NETWORKS, refused=refused))
    listed = [line for line in text.splitlines() if line.startswith(("- JAX", "- eager"))]
    assert listed == [
        "- JAX (variant large; dtype float16; size 224; batch 1; view latency, stream): not installed",
        "- JAX (variant large; dtype float16; size 224; batch 8, 32; view latency, stream): not installed",
        "- JAX (variant small; dtype float16; size 224; batch 128; view latency): hung",
        "- eager (variant large; dtype float16; size 224; op linear; batch 1; view latency): wrong",
    ]


def test_the_newer_counts(files: Files) -> None:
    old = files.write("old.json", row(100), row(300, "torchvision"), row(500, "timm"), refused=[refusal("JAX", "hung")])
    new = files.write("new.json", row(200), row(50, "JAX"), refused=[refusal("timm", "wrong", view=None)], day=2)
    wanted = {"mbv3fast": 200, "torchvision": 300, "JAX": 50}
    for paths in ([old, new], [new, old]):
        merged = merge([read(path) for path in paths])
        assert {row.contender: round(row.median * 1e6) for row in merged.rows} == wanted
        assert [no.contender for no in merged.refused] == ["timm"]
    assert "Date: 2026-11-01 to 2026-11-02" in files.report(old, new)


def test_machines_and_devices_are_apart(files: Files) -> None:
    paths = [
        files.write("a.json", row(200), row(3000, **CPU)),
        files.write("b.json", row(100), gpu={**H100, "name": "NVIDIA L4"}),
        files.write("c.json", row(400), versions={"torch": "2.12"}),
        files.write("d.json", row(2000, **CPU), gpu=None),
    ]
    text = files.report(*paths)
    assert re.findall("^## (.*)", text, re.M) == [
        "Where measured",
        "GPU: NVIDIA H100 (machine 1)",
        "GPU: NVIDIA H100 (machine 2)",
        "GPU: NVIDIA L4 (machine 3)",
        "CPU: A CPU, 2 cores (machine 1)",
        "CPU: A CPU, 2 cores (machine 4)",
    ]
    p50s = re.findall(r"^\| \*\*mbv3fast\*\* \| (\S+ \S+) \| \S+ \S+ \| 1.00x", text, re.M)
    assert p50s == ["200 us", "400 us", "100 us", "3.00 ms", "2.00 ms"]
    assert "- GPU: NVIDIA L4, compute capability 9.0, driver 580.1\n" in text
    names = {path.name for path in (files.folder / "out").glob("*latency.png")}
    assert names == {
        *(f"gpu-{number}-large-float16-224-latency.png" for number in (1, 2, 3)),
        *(f"cpu-{number}-large-float32-224-latency.png" for number in (1, 4)),
    }


def test_charts(files: Files) -> None:
    text = files.report(files.write("a.json", *NETWORKS, *steps()))
    charts = sorted((files.folder / "out").glob("*.png"))
    kinds = [chart.name.removeprefix("gpu-1-large-float16-224-") for chart in charts]
    assert kinds == ["floor-batch-1.png", "latency.png", "throughput.png"]
    assert all(f"]({chart.name})" in text for chart in charts)
    assert len({chart.read_bytes() for chart in charts}) == 3
    for chart in charts:
        with Image.open(chart) as image:
            assert image.width >= 900
            colours = image.convert("RGB").getcolors(1 << 20)
        assert any(colour == (0xD5, 0x5E, 0x00) for _, colour in colours), "our colour"
    before = charts[0].read_bytes()
    files.report(files.write("a.json", *NETWORKS, *steps(cold=40)))
    assert charts[0].read_bytes() != before


def test_equal_input_gives_equal_output(files: Files) -> None:
    paths = [files.write("a.json", *NETWORKS, *steps()), files.write("b.json", row(5000, **CPU), gpu=None)]

    def written(*order: Path) -> dict[str, bytes]:
        files.report(*order)
        return {path.name: path.read_bytes() for path in (files.folder / "out").iterdir()}

    assert written(*paths) == written(*reversed(paths))


def test_the_readme(files: Files) -> None:
    gpu = files.write("gpu.json", *NETWORKS, refused=[refusal("JAX", "not installed")])
    cpu = files.write("cpu.json", row(9000, **CPU), row(6000, "OV", **CPU), row(50000, **CPU, batch=8), gpu=None)
    assert files.readme_of(gpu, cpu) == 0
    text = files.readme.read_text()
    assert re.fullmatch(f"before\n{BEGIN}\nGPU: NVIDIA H100, .*driver 580.1, .*{END}\nafter\n", text, re.S)
    on_gpu, _, on_cpu = text.partition("\nCPU: A CPU, 2 cores, float32, 224x224, torch 2.11, 2026-11-01:")
    assert below(on_gpu, "below 1 it is the slower.") == [
        "network | contender | batch 1 | ratio | images/s, batch 8 | ratio",
        r"Large | faster \| &lt;peer> | 150 us | 0.75x | - | -",
        "Large | **mbv3fast** | 200 us | 1.00x | 10,000 | 1.00x",
        "Large | torchvision | 1.23 ms | 6.17x | 20,000 | 0.50x",
        "Large | timm | - | - | 4,000 (latency) | -",
    ]
    assert "Not timed: JAX: not installed" in on_gpu
    assert (
        "| Large | OV | 6.00 ms | 0.67x | - | - |\n| Large | **mbv3fast** | 9.00 ms | 1.00x | 50.0 ms | 1.00x |"
        in on_cpu
    )


def test_a_readme_without_a_gpu(files: Files) -> None:
    path = files.write("cpu.json", row(9000, **CPU), gpu=None)
    assert main([str(path), "--readme", str(files.readme)]) == 0
    assert f"{BEGIN}\nNot measured on a GPU yet.\n\nCPU: A CPU" in files.readme.read_text()
    assert (path.parent / "report.md").exists(), "beside the results"


def test_check(files: Files, capsys: Any) -> None:
    path = files.write("a.json", *NETWORKS)
    assert files.readme_of(path, check=True) == 1
    assert "README.md: its section on performance is not" in capsys.readouterr().err
    assert sorted(p.name for p in files.folder.iterdir()) == ["README.md", "a.json"]
    assert files.readme_of(path) == 0
    assert files.readme_of(path, check=True) == 0
    files.readme.write_text(files.readme.read_text().replace("200 us", "100 us"))
    assert files.readme_of(path, check=True) == 1


def test_dry_runs_say_so_and_stay_out_of_the_readme(files: Files, capsys: Any) -> None:
    dry = files.write("dry.json", *NETWORKS, gpu=None, dry_run=True)
    real = files.write("real.json", row(200))
    before = files.readme.read_text()
    assert files.readme_of(real, dry) == 1
    assert f"dry.json: {DRY}" in capsys.readouterr().err
    assert files.readme.read_text() == before
    assert files.report(dry).startswith(f"# Measurements of mbv3fast ({DRY})\n")
    png = (files.folder / "out" / "gpu-1-large-float16-224-latency.png").read_bytes()
    text = files.report(dry, real)
    assert text.startswith("# Measurements of mbv3fast\n")
    assert f"## GPU: no GPU (machine 2) ({DRY})\n" in text
    files.report(files.write("dry.json", *NETWORKS, gpu={**H100, "name": "no GPU"}))
    assert (files.folder / "out" / "gpu-1-large-float16-224-latency.png").read_bytes() != png, "its title says so"


def test_errors_are_a_line_and_nothing_is_written(files: Files, capsys: Any) -> None:
    good = files.write("good.json", row(200))
    zero, late, unknown = (copy.deepcopy(row(200)) for _ in range(3))
    zero["stats"]["median"], late["stats"]["iqr"], unknown["extra_info"]["view"] = 0, float("nan"), "dusk"
    no_json, foreign, no_markers = (files.folder / name for name in ("no.json", "foreign.json", "no.md"))
    no_json.write_text("{"), foreign.write_text("[]"), no_markers.write_text(f"{END}{BEGIN}")
    other = {"name": "bench", "stats": {}, "extra_info": {}}
    for arguments, complaint in {
        (): "report: needs files of results",
        (files.folder / "missing.json",): "missing.json: No such file",
        (no_json,): "no.json: not JSON",
        (foreign,): "foreign.json: got list, needs an object",
        (files.write("other.json", other),): "other.json: no rows of networks, steps, ops",
        (good, files.write("none.json")): "none.json: no rows",
        (files.write("refused.json", refused=[refusal("JAX", "hung")]),): "refused.json: no rows, only refusals",
        (files.write("zero.json", zero),): "zero.json: benchmarks[0]: stats: median: got 0",
        (files.write("late.json", late),): "late.json: benchmarks[0]: stats: iqr: got 'nan', needs float",
        (files.write("view.json", unknown),): "view: got 'dusk', needs latency or device or stream",
        (files.write("batch.json", row(200, batch="8")),): "batch.json: benchmarks[0]: extra_info: batch: got '8'",
        (files.write("step.json", row(200, suite="steps")),): "step.json: benchmarks[0]: extra_info: op is missing",
        (files.write("no-gpu.json", row(200), gpu=None),): "device: got 'gpu', but machine_info names none",
        (files.write("cores.json", row(200), cores=None),): "cores.json: machine_info: cores is missing",
        (good, "--check"): "--check needs --readme",
        (good, "--readme", no_markers): f"no.md: needs {BEGIN}",
        (good, "--readme", files.folder / "missing.md"): "missing.md",
    }.items():
        assert main([*map(str, arguments), "--out", str(files.folder / "out")]) == 1, complaint
        error = capsys.readouterr().err
        assert complaint in error
        assert error.count("\n") == 1
    assert not (files.folder / "out").exists()
    with pytest.raises(ResultsError):
        read(no_json)
