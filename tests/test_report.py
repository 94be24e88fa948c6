"""Reports of benchmark results."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from PIL import Image

from benchmarks.report import main
from benchmarks.reporting.markdown import digits, duration, ratio
from benchmarks.reporting.readme import BEGIN, END
from benchmarks.reporting.rows import ResultsError, merge, read
from tests.reports import CPU, H100, NETWORKS, STEP, Files, below, refusal, row


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


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
        "contender | p50 | p99 | ratio | device, warm L2 | its IQR | its p99 | device, cold L2 | to prepare",
        r"faster \| &lt;peer> | 150 us | 300 us | 0.75x | - | - | - | - | -",
        "**mbv3fast** | 200 us | 400 us | 1.00x | 180 us | 18.0 us | 360 us | 260 us | 3.21 s",
        "torchvision | 1.23 ms | 2.47 ms | 6.17x | - | - | - | - | -",
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
        row(us, **STEP, cache=cache, index=index, step=f"features.{index}", op="stem_conv", shape="1x3", floor_s=f)
        for index in (10, 2)
        for cache, us, f in (("warm", 10, 4e-6), ("cold", cold, 5e-6))
    ]


def test_steps(files: Files) -> None:
    title = "#### Large, float16, 224x224, batch 1: mbv3fast, by the GPU's events"
    assert below(files.report(files.write("a.json", *steps())), title) == [
        "- | step | op | shape | warm | cold | floor, warm | floor, cold | share, warm | share, cold | launches",
        "2 | features.2 | stem_conv | 1x3 | 10.0 us | 20.0 us | 4.00 us | 5.00 us | 40% | 25% | 2",
        "10 | features.10 | stem_conv | 1x3 | 10.0 us | 20.0 us | 4.00 us | 5.00 us | 40% | 25% | 2",
        "- | total | - | - | 20.0 us | 40.0 us | 8.00 us | 10.0 us | 40% | 25% | 4",
    ]
    one_not_cold = files.report(files.write("a.json", *steps()[:-1]))
    assert below(one_not_cold, title)[-1] == "- | total | - | - | 20.0 us | - | 8.00 us | - | 40% | - | 4"


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


def test_results_to_keep(files: Files, capsys: Any) -> None:
    commit = {"id": "abc", "time": "then", "dirty": False, "branch": "mine"}
    paths = [files.write("a.json", row(200), refused=[refusal("JAX", "hung")]), files.write("b.json", row(300, "timm"))]
    for path in paths:
        whole = json.loads(path.read_text()) | {"version": "5", "commit_info": commit}
        whole["benchmarks"][0] |= {"group": "g", "params": {}}
        whole["benchmarks"][0]["stats"]["data"] = [0.0002] * 2000
        path.write_text(json.dumps(whole))
    kept = files.folder / "new" / "kept.json"
    assert main([*map(str, paths), "--out", str(files.folder / "out"), "--save", str(kept)]) == 0
    assert read(kept) == merge([read(path) for path in paths])
    newer = files.write("newer.json", row(150), day=2)
    newer.write_text(json.dumps(json.loads(paths[0].read_text()) | json.loads(newer.read_text())))
    again = ["--out", str(files.folder / "out"), "--save", str(files.folder / "again.json")]
    assert main([str(newer), *map(str, paths), *again]) == 0
    newest = merge([read(files.folder / "again.json")]).rows
    assert {row.contender: round(row.median * 1e6) for row in newest} == {"mbv3fast": 150, "timm": 300}
    assert "data" not in kept.read_text()
    assert "mine" not in kept.read_text()
    assert kept.read_text().count("\n") < 20, "a line a row"
    dry = files.write("dry.json", row(200), dry_run=True)
    assert main([str(dry), "--out", str(files.folder / "out"), "--save", str(files.folder / "no.json")]) == 1
    assert not (files.folder / "no.json").exists()
    other = files.write("c.json", row(200, **CPU), gpu=None)
    assert main([str(paths[0]), str(other), "--out", str(files.folder / "out"), "--save", str(kept)]) == 1
    assert "c.json is of another machine" in capsys.readouterr().err


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


def test_tables_need_no_matplotlib(files: Files, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "benchmarks.reporting.charts", None)
    text = files.report(files.write("a.json", *NETWORKS))
    assert "draws no charts" in capsys.readouterr().err
    assert "**mbv3fast**" in text
    assert ".png" not in text
    assert [path.name for path in (files.folder / "out").iterdir()] == ["report.md"]


@pytest.mark.parametrize(
    ("theirs", "text"),
    [(1.0, "1.00x"), (0.997, "1.00x"), (0.734, "0.73x"), (0.0123, "0.012x"), (12.44, "12.4x"), (1234, "1,230x")],
)
def test_ratios(theirs: float, text: str) -> None:
    assert ratio(theirs, 1.0) == text
    assert ratio(None, 1.0) == ratio(1.0, None) == ""
