"""The commands that need no images of the user's: demo, plan, doctor, help."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image

from mbv3fast.cli import main
from mbv3fast.cli.options import as_options


def run(*arguments: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_demo_reads_the_digits_and_saves_the_picture(tmp_path: Path) -> None:
    output = run("demo", "--out", tmp_path / "demo.png", "--device", "cpu")
    assert output.count("read      0 1 2 3 4 5 6 7 8 9") == 4
    assert "right     40 of 40" in output
    assert "served by the fused engine: CPU" in output
    assert float(output.rsplit(":", 1)[1]) < 1e-4  # agreement
    with Image.open(tmp_path / "demo.png") as picture:
        assert picture.size == (720, 368)
        assert len(set(picture.resize((72, 37)).get_flattened_data())) > 20  # not a blank sheet


def test_plan_counts_the_networks_macs() -> None:
    for model, macs in (("large", 216.59e6), ("small", 56.50e6)):
        plan = json.loads(run("plan", model, "--batch", 2, "--json"))
        assert plan["totals"]["macs"] == pytest.approx(2 * macs, rel=1e-4)
        assert plan["steps"][0]["op"] == "stem_conv"
        assert {"op", "shapes", "bytes_read", "bytes_written", "weight_bytes", "macs", "launches"} <= set(
            plan["steps"][0]
        )
        for name in ("bytes_read", "bytes_written", "weight_bytes", "macs", "launches"):
            assert plan["totals"][name] == sum(step[name] for step in plan["steps"])


def test_plan_follows_size_batch_and_dtype() -> None:
    base = json.loads(run("plan", "small", "--size", 64, "--json"))["totals"]
    half = json.loads(run("plan", "small", "--size", 64, "--batch", 3, "--dtype", "float16", "--json"))["totals"]
    assert half["bytes_written"] * 2 == base["bytes_written"] * 3
    assert half["weight_bytes"] * 2 == base["weight_bytes"]


def test_plan_prints_a_table() -> None:
    lines = run("plan", "large").splitlines()
    assert lines[0] == "large, input [1, 3, 224, 224], float32, backend torch"
    assert lines[-1].split()[-2:] == ["216.59", "139"]


def test_doctor_says_who_serves_what_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    output = run("doctor")
    for word in ("torch", "triton", "safetensors", "cpu: ", "depthwise_conv", "to install for more"):
        assert word in output
    assert "cuda" in output
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    assert "pip install 'mbv3fast[hub]'" in run("doctor")


def test_help_teaches() -> None:
    assert "Start with `mbv3fast demo`" in run("--help")
    for command in ("demo", "classify", "embed", "plan", "kernels", "tiles", "build", "doctor"):
        assert "Usage" in run(command, "--help")


def test_a_backend_that_cannot_serve_here_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "image.png").touch()
    arguments = ["classify", str(tmp_path), "--weights", "IMAGENET1K_V1", "--backend", "triton", "--device", "cpu"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert result.output.startswith("Error: backend: 'triton' can't serve torch.float32 on cpu: a CPU runs them in")
    assert len(result.output.splitlines()) == 1


def test_a_plan_is_counted_without_the_library_that_runs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbv3fast.backend.lacks_loading", lambda: "gone")
    lines = run("plan", "small", "--backend", "cuda").splitlines()
    assert lines[0] == "small, input [1, 3, 224, 224], float16, backend cuda"
    assert lines[-1].split()[-1] == "32"
    result = CliRunner().invoke(main, ["plan", "small", "--backend", "cuda", "--dtype", "float32"])
    assert result.exit_code == 1
    assert "has no plan for torch.float32: CUDA kernels are of float16 and bfloat16" in result.output


def test_the_network_in_one_launch_moves_images_and_logits_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbv3fast.backend.lacks_loading", lambda: "gone")
    network, blocks = (
        json.loads(run("plan", "small", "--batch", 2, "--plan", plan, "--json"))["totals"]
        for plan in ("network", "blocks")
    )
    read, written = 2 * 2 * 3 * 224 * 224, 2 * 2 * 1000
    same = {name: blocks[name] for name in ("macs", "weight_bytes")}
    moved = {"bytes_read": read, "bytes_written": written, "peak_activation_bytes": written, "partial_bytes": 0}
    assert network == {**same, **moved, "launches": 1}
    assert run("plan", "small", "--plan", "network").splitlines()[0].endswith("float16, backend network")
    for more, words in ((["--gpu", "h100"], "see mbv3fast stages"), (["--backend", "cuda"], "not both")):
        result = CliRunner().invoke(main, ["plan", "small", "--plan", "network", *more])
        assert (result.exit_code, words in result.output) == (2, True)


def test_advice_on_arguments_becomes_advice_on_options() -> None:
    advice = 'say source="timm" or source= (seed, …), or give bn_eps= and tf_same_padding=; as weights=, with weights='
    assert as_options(advice) == ('say --source "timm" or --source (seed, …); as --weights, with --weights')
