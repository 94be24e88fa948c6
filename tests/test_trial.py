"""Trying plans in processes of their own: what they are tried on, what is found wrong, how a process may end."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mbv3fast import BackendError, records, trial
from mbv3fast.backend import PLANS
from mbv3fast.clearance import tried
from mbv3fast.cli import doctor
from mbv3fast.cluster.run import ClusterNetwork
from mbv3fast.fast import FusedMobileNetV3
from mbv3fast.ops import OPS
from mbv3fast.trial import Case, cases, try_in_process, try_plan
from tests.cli import run

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(records.CACHE, str(tmp_path / "cache"))
    tried.cache_clear()


@pytest.mark.usefixtures("emulation")
def test_a_plan_is_tried_on_both_networks_in_each_dtype_that_it_serves() -> None:
    found = cases("blocks", CPU)
    assert {(case.variant, case.dtype) for case in found} == {
        (variant, dtype) for variant in ("large", "small") for dtype in (torch.float16, torch.bfloat16)
    }
    assert str(found[0]) == "large, float16, [2, 3, 32, 33]"


def test_a_plan_without_kernels_here_is_refused() -> None:
    with pytest.raises(BackendError, match="interpreter"):
        cases("layers", CPU)


@pytest.fixture
def one_case(emulation: Any, monkeypatch: pytest.MonkeyPatch) -> Case:  # noqa: ARG001 # for its sake
    case = Case("small", torch.float16, (1, 3, 32, 32))
    monkeypatch.setattr(trial, "cases", lambda *_: [case])
    return case


@pytest.mark.usefixtures("one_case")
@pytest.mark.parametrize("plan", ["blocks", "network"])
def test_a_right_plan_passes(plan: str) -> None:
    assert try_plan(plan, CPU) == ""


def test_a_wrong_kernel_is_named(one_case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    right = OPS["inverted_residual"].run
    monkeypatch.setattr(OPS["inverted_residual"], "run", lambda **given: right(**given).mul_(1.5))
    assert try_plan("blocks", CPU).startswith(f"{one_case}: inverted_residual of features.2.block.2 errs by ")


def test_a_wrong_network_is_seen_as_a_whole(one_case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    right = ClusterNetwork.__call__
    monkeypatch.setattr(ClusterNetwork, "__call__", lambda *given: right(*given).mul_(1.5))
    assert try_plan("network", CPU).startswith(f"{one_case}: the network errs by ")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda out, _: out + torch.rand(()), "the same input gives other outputs when it comes again"),
        (lambda out, _: torch.ones_like(out), "another input gives the same outputs"),
        (lambda out, _: torch.zeros_like(out), "another input gives the same outputs"),
        (lambda out, _: out.roll(1, 1), "calls differ from PyTorch's modules by"),
    ],
)
def test_calls_that_mix_things_up_are_seen(
    one_case: Case, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Tensor, Tensor], Tensor], words: str
) -> None:
    forward = FusedMobileNetV3.forward

    def spoilt(self: FusedMobileNetV3, x: Tensor) -> Tensor:
        return forward(self, x) if self.training else spoil(forward(self, x), x)

    monkeypatch.setattr(trial, "disagreement", lambda *_: "")
    monkeypatch.setattr(FusedMobileNetV3, "forward", spoilt)
    assert try_plan("blocks", CPU).startswith(f"{one_case}: {words}")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("""print('noise'); print('{"reason": ""}')""", ""),
        ("""print('{"reason": "errs by 3"}')""", "errs by 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its process was ended by SIGSEGV"),
        ("raise RuntimeError('an illegal access')", "its process failed: RuntimeError: an illegal access"),
        ("pass", "its process failed: exit code 0"),
        ("print('[]')", "its process failed: exit code 0"),
        ("""print('{"reason": ""}', flush=True); import os; os._exit(7)""", "its process failed: exit code 7"),
        ("import os; os.kill(os.getpid(), 40)", "its process was ended by signal 40"),
        (r"import os; os.write(2, b'\xff broken'); os._exit(1)", "its process failed: \ufffd broken"),
    ],
)
def test_how_a_process_ends_is_told(monkeypatch: pytest.MonkeyPatch, program: str, reason: str) -> None:
    monkeypatch.setattr(trial, "COMMAND", [sys.executable, "-c", program])
    assert try_in_process("blocks", CPU, 60) == reason


def test_a_process_that_hangs_is_ended_with_its_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "child"
    program = (
        "import pathlib, subprocess, time\n"
        f"child = subprocess.Popen(['sleep', '600'])\npathlib.Path({str(note)!r}).write_text(str(child.pid))\n"
        "time.sleep(600)"
    )
    monkeypatch.setattr(trial, "COMMAND", [sys.executable, "-c", program])
    assert try_in_process("blocks", CPU, 3) == "it took more than 3 seconds"
    until = time.monotonic() + 10
    while _runs(int(note.read_text())) and time.monotonic() < until:
        time.sleep(0.01)
    assert not _runs(int(note.read_text()))


def test_the_process_runs_this_package_wherever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shadow = tmp_path / "mbv3fast"
    shadow.mkdir()
    (shadow / "__init__.py").touch()
    (shadow / "trial.py").write_text('def main(*_):\n    print(\'{"reason": ""}\')\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "interpreter" in try_in_process("layers", CPU, 60)  # which this machine has no kernels for


def test_a_process_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = tmp_path / "child"
    program = (
        f"import pathlib, subprocess\nchild = subprocess.Popen(['sleep', '600'], stdout=-3, stderr=-3)\n"
        f'pathlib.Path({str(note)!r}).write_text(str(child.pid))\nprint(\'{{"reason": ""}}\')'
    )
    monkeypatch.setattr(trial, "COMMAND", [sys.executable, "-c", program])
    assert try_in_process("blocks", CPU, 60) == ""
    time.sleep(0.2)
    assert not _runs(int(note.read_text()))


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.is_file() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """What becomes of each plan that there is, for the command."""
    found = dict.fromkeys(PLANS, "")

    def plans_cases(plan: str, _: torch.device) -> list[int]:
        if plan not in found:
            raise BackendError("no kernels")
        return [1, 2]

    monkeypatch.setattr(doctor, "cases", plans_cases)
    monkeypatch.setattr(doctor, "try_in_process", lambda plan, *_: found[plan])
    return found


def test_the_command_keeps_what_passes(trials: dict[str, str]) -> None:
    del trials["layers"]
    result = run("doctor", "--check")
    assert result.exit_code == 0, result.output
    assert "  layers                    left out: no kernels" in result.output
    assert "layers" not in run("doctor", "--check", "--plan", "blocks").output.partition("versions")[0]
    assert "  blocks                    passed in 2 cases, 0 s" in result.output
    assert "  network                   passed in 2 cases, 0 s" in result.output
    assert [tried(plan, CPU) for plan in PLANS] == [None, "", ""]


def test_the_command_keeps_what_fails_and_says_so_by_its_exit_code(trials: dict[str, str], tmp_path: Path) -> None:
    trials["blocks"] = "errs"
    result = run("doctor", "--check", "--limit", "5")
    assert result.exit_code == 1
    assert "  blocks                    errs" in result.output
    assert "versions" in result.output
    assert tried("blocks", CPU) == "errs"
    assert run("doctor", "--commit", tmp_path / "file").exit_code == 2
    assert "needs a GPU" in run("doctor", "--check", "--commit", tmp_path / "file").output


@pytest.mark.usefixtures("trials")
def test_the_command_says_where_a_verdict_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(records.CACHE, str(tmp_path / "file"))
    result = run("doctor", "--check", "--plan", "blocks")
    assert result.exit_code == 1
    assert "  blocks                    the verdict can't be kept: " in result.output


def test_the_command_needs_something_to_try(trials: dict[str, str]) -> None:
    trials.clear()
    result = run("doctor", "--check")
    assert (result.exit_code, result.output.splitlines()[-1]) == (
        1,
        "Error: nothing to try: no plan's kernels run here",
    )


@pytest.mark.slow  # a minute or two
@pytest.mark.parametrize("plan", ["blocks", "network"])
def test_an_emulated_plan_passes_in_a_process(
    plan: str, emulated_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert emulated_library.is_file()
    monkeypatch.setenv("MBV3FAST_EMULATE", "1")
    assert try_in_process(plan, CPU, 900) == ""
