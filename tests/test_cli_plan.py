"""`mbv3fast plan --gpu`: floors, estimates and the alternatives, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mbv3fast.gpus import GPUS
from tests.cli import run

DOCUMENT = Path(__file__).parent.parent / "docs" / "cost-model.md"
TRITON = ("--backend", "triton", "--dtype", "float16")
PLAIN = ("--backend", "auto", "--dtype", "float32")
OURS = ("programs", "serial", "halo", "issued", "dots", "fmas", "estimate_seconds")
FLOORS = ("floor_seconds", "bound", "cold_floor_seconds", "cold_bound", "streamed_seconds")
COUNTED = (*OURS, *FLOORS)


@pytest.fixture
def no_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No timed configurations, which the document and a plan without a GPU know nothing of."""
    monkeypatch.setattr(pytest.importorskip("mbv3fast.kernels.tuned"), "TABLES", tmp_path)


def said(*arguments: object) -> str:
    result = run("plan", *arguments)
    assert result.exit_code == 0, result.output
    return result.output


def data(*arguments: object) -> dict[str, Any]:
    return json.loads(said(*arguments, "--json"))


def test_without_a_gpu_nothing_is_added() -> None:
    plain, costly = data("small"), data("small", "--gpu", "l4", *PLAIN)
    assert set(costly) - set(plain) == {"gpu", "alternatives"}
    assert set(plain["steps"][0]) < set(costly["steps"][0])
    assert not {*COUNTED, "compulsory"} & {*plain["steps"][0], *plain["totals"]}
    assert "floor" not in said("small")


@pytest.mark.usefixtures("no_tables")
def test_json_of_our_kernels() -> None:
    plain, costly = data("large", *TRITON), data("large", "--gpu", "h100")
    assert costly["gpu"] == GPUS["h100"].name
    for before, after in zip(plain["steps"], costly["steps"], strict=True):
        assert before.items() <= after.items()  # a plan is counted for the H100 to begin with
        assert all(after[name] is not None for name in COUNTED)
    seconds = ("floor_seconds", "cold_floor_seconds", "streamed_seconds", "estimate_seconds")
    for name in ("launches", "compulsory", "issued", "serial", *seconds):
        assert costly["totals"][name] == pytest.approx(sum(step[name] for step in costly["steps"]))
    others = {other["name"]: other for other in costly["alternatives"]}
    assert {name: other["launches"] for name, other in others.items()} == {"eager": 185, "fused convolutions": 65}
    for other in others.values():
        for count in ("launches", "moved", "vectors"):
            assert other[count] == sum(part[count] for part in other["parts"].values())


@pytest.mark.usefixtures("no_tables")
def test_launches_are_the_gpus_own() -> None:
    h100, orin = (data("small", *TRITON, "--gpu", gpu) for gpu in ("h100", "orin"))
    assert h100["totals"]["launches"] != orin["totals"]["launches"]
    for plan in (h100, orin):
        assert plan["totals"]["launches"] == sum(step["launches"] for step in plan["steps"])


@pytest.mark.usefixtures("no_tables")
def test_the_table_of_our_kernels() -> None:
    lines = said("large", *TRITON, "--gpu", "h100").splitlines()
    assert lines[0].endswith("float16, backend triton, NVIDIA H100 80GB HBM3: counted, not measured")
    for word in ("CTAs", "serial", "halo", "issued KB", "floor us", "bound", "cold us", "estimate us"):
        assert word in lines[1]
    stem = lines[2].split()
    assert stem[0] == "features.0"
    assert stem[8:13] == ["1", "392", "1", "1.52", "1,439"]
    assert stem[13:17] == ["0.07", "memory", "0.09", "memory"]
    end = lines.index("")
    assert lines[end - 1].split()[0] == "total"
    rows = {line[:22].strip(): line[22:].split() for line in lines[end + 1 :]}
    assert rows["eager"] == ["185", "56.9", "0.06", "58,778"]
    assert rows["fused convolutions"] == ["65", "20.0", "0.03", "167,624"]
    assert rows["this plan (triton)"] == ["46", "15.4", "0.40", "211,644"]
    assert "\n".join(lines[end + 1 :]) in DOCUMENT.read_text(encoding="utf-8")


def test_the_table_of_pytorchs_own_kernels_has_floors() -> None:
    lines = said("large", "--gpu", "a100", "--backend", "torch").splitlines()
    assert "memory" in lines[2]
    assert lines[-1].startswith("this plan (torch)")
    assert len(lines[lines.index("") - 1].split()) == 8  # "total", six counts and floors; there is no estimate


def test_a_gpu_that_is_not_in_the_table_is_refused() -> None:
    result = run("plan", "large", "--gpu", "h100-pcie")
    assert result.exit_code == 2
    assert "h200" in result.output
