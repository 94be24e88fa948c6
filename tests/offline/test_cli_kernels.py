"""`mbv3fast kernels`, which compiles."""

from __future__ import annotations

import pytest

from tests.cli import run
from tests.offline.launches import plan

ARGUMENTS = ("kernels", "small")  # at batch 1 and 224x224, whose binaries other tests have left in the cache


def test_every_launch_of_the_plan_is_in_the_table() -> None:
    result = run(*ARGUMENTS)
    assert result.exit_code == 0, result.output
    title, _, *rows = result.output.splitlines()
    assert title == "small, input [1, 3, 224, 224], float16, sm_90"
    cells = [row.replace(",", "").split() for row in rows]
    runs = [int(row[2]) for row in cells]
    costs = plan("small").costs((1, 3, 224, 224))
    assert sum(runs) == sum(cost.launches for cost in costs)
    assert cells[0][:4] == ["features.0", "_stem_conv_kernel", "1", "392"]
    for column, total in (
        (-2, sum(cost.bytes_read + cost.bytes_written for cost in costs)),
        (-1, sum(cost.partial_bytes for cost in costs)),
    ):
        counted = sum(times * float(row[column]) for times, row in zip(runs, cells, strict=True))
        assert counted == pytest.approx(total / 1e3, abs=0.05 * sum(runs))
    for registers, spilled, shared in ((int(row[4]), int(row[5]), float(row[6])) for row in cells):
        assert 0 < registers <= 255
        assert spilled == 0
        assert shared < 227


def test_documents_get_a_table_of_theirs() -> None:
    lines = run(*ARGUMENTS, "--markdown").output.splitlines()
    assert lines[1] == ""
    assert lines[2].startswith("| step | kernel | runs | CTAs |")
    assert lines[3].startswith("| --- | --- | ---: |")
    assert {line.count("|") for line in lines[2:]} == {10}


def test_an_interpreter_that_compiles_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mbv3fast.cli.kernels.interpreted", lambda: True)
    result = run(*ARGUMENTS)
    assert result.exit_code == 1
    assert result.output == "Error: Triton's interpreter compiles nothing: needs TRITON_INTERPRET unset, got 1\n"
