"""The self-check: what it compares, what it keeps, what becomes of a model that it refuses. Kernels are stand-ins."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mbv3fast
from mbv3fast import graphs, records, selfcheck, service, serving
from mbv3fast.disagreement import disagreement
from mbv3fast.fast import FusedMobileNetV3
from mbv3fast.ops import OPS
from mbv3fast.selfcheck import Verdict, fingerprint, judge
from tests.stand_ins import StandIn, decide, references_for_kernels

pytest.importorskip("triton")
CPU = torch.device("cpu")
SHAPE = (2, 3, 40, 52)


@pytest.fixture(autouse=True)
def _own_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(records.CACHE, str(tmp_path / "cache"))


@pytest.fixture(autouse=True)
def _references_for_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    references_for_kernels(monkeypatch)


def model() -> FusedMobileNetV3:
    torch.manual_seed(0)
    return mbv3fast.small(num_classes=10, backend="triton").eval()


def times(**seconds: float) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[Any], float]]:
    """`ours`, `theirs`, and a timer that says how long each takes."""

    def ours() -> None: ...

    def theirs() -> None: ...

    return ours, theirs, lambda run: seconds[run.__name__]


def verdict(plan: Any, *, ours: float = 1.0, theirs: float = 2.0) -> Verdict:
    run_ours, run_theirs, timer = times(ours=ours, theirs=theirs)
    return judge(plan, SHAPE, CPU, run_ours, run_theirs, timer=timer)


def break_op(monkeypatch: pytest.MonkeyPatch, name: str, spoil: Callable[[Any], Any]) -> None:
    run = OPS[name].run
    monkeypatch.setattr(OPS[name], "run", lambda **given: spoil(run(**given)))


def spoil_first(value: float) -> Callable[[Any], Any]:
    def spoil(result: Any) -> Any:
        first = result[0] if isinstance(result, tuple) else result
        first[(0,) * first.dim()] = value
        return result

    return spoil


def test_what_agrees_and_is_faster_serves() -> None:
    assert verdict(model().plan()) == Verdict("", 2.0)


@pytest.mark.parametrize("op", sorted({step.op for step in model().plan().steps}))
@pytest.mark.parametrize("value", [50.0, float("nan")])
def test_one_wrong_number_is_seen_and_its_step_named(monkeypatch: pytest.MonkeyPatch, op: str, value: float) -> None:
    plan = model().plan()
    assert disagreement(plan, SHAPE, CPU) == ""
    break_op(monkeypatch, op, spoil_first(value))
    step = next(step for step in plan.steps if step.op == op)
    assert disagreement(plan, SHAPE, CPU).startswith(f"{op} of {step.name} errs by ")


@pytest.mark.parametrize("images", [8, 9, 17])
def test_a_wrong_last_image_is_seen(monkeypatch: pytest.MonkeyPatch, images: int) -> None:
    def spoil(result: Any) -> Any:
        result[-1] = torch.nan
        return result

    plan = model().plan()
    assert disagreement(plan, (images, 3, 32, 32), CPU) == ""
    break_op(monkeypatch, "depthwise_project", spoil)
    assert "errs by nan" in disagreement(plan, (images, 3, 32, 32), CPU)


def test_a_kernel_that_fails_is_a_kernel_that_errs(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_: Any) -> None:
        raise RuntimeError("out of resource")

    monkeypatch.setattr(OPS["linear"], "run", fail)
    assert disagreement(model().plan(), SHAPE, CPU) == "linear of classifier.3 fails: out of resource"


def test_the_verdict_is_on_kernels_whatever_the_weights() -> None:
    spoilt = model()
    with torch.no_grad():
        spoilt.features[3].block[0][0].weight.fill_(torch.nan)
    assert disagreement(spoilt.plan(), SHAPE, CPU) == ""


def test_half_precision_may_err_as_pytorch_does() -> None:
    assert disagreement(model().half().plan(), SHAPE, CPU) == ""


def test_what_is_slower_leaves_the_work_to_pytorch(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="mbv3fast")
    found = verdict(model().plan(), ours=3.0)
    assert found.reason == f"our kernels take 1.50x the time of PyTorch's modules for {SHAPE}"
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_a_verdict_is_reached_once(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = model().plan()
    first = verdict(plan)
    monkeypatch.setattr(selfcheck, "_judge", lambda *_: pytest.fail("tried again"))
    assert verdict(model().plan()) == first  # another model of that architecture
    (entry,) = json.loads(records.record_path(selfcheck.FILE).read_text()).values()
    assert entry == {"reason": "", "speedup": 2.0}


def test_what_a_verdict_depends_on_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = model().plan()
    keys = {fingerprint(plan, SHAPE, CPU), fingerprint(plan, (1, *SHAPE[1:]), CPU)}
    keys |= {fingerprint(model().half().plan(), SHAPE, CPU)}
    keys |= {fingerprint(mbv3fast.small(num_classes=11, backend="triton").eval().plan(), SHAPE, CPU)}
    for name in ("gpu_identity", "sources"):
        monkeypatch.setattr(selfcheck, name, lambda *_: "another")
        keys |= {fingerprint(plan, SHAPE, CPU)}
    assert len(keys) == 6


@pytest.mark.parametrize("damage", ["", "{", "[1]", '{"KEY": 3}', '{"KEY": {"reason": 3}}'])
def test_damaged_records_are_replaced(damage: str) -> None:
    plan = model().plan()
    records.record_path(selfcheck.FILE).parent.mkdir()
    records.record_path(selfcheck.FILE).write_text(damage.replace("KEY", fingerprint(plan, SHAPE, CPU)))
    assert verdict(plan) == Verdict("", 2.0)
    assert json.loads(records.record_path(selfcheck.FILE).read_text())[fingerprint(plan, SHAPE, CPU)]["speedup"] == 2.0


def test_without_a_place_for_records_all_is_judged_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(records.CACHE, str(tmp_path / "file"))
    assert verdict(model().plan()) == Verdict("", 2.0)
    assert verdict(model().plan(), theirs=4.0) == Verdict("", 4.0)


def test_threads_wait_for_one_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, tries = model().plan(), []
    judged = selfcheck._judge
    monkeypatch.setattr(selfcheck, "_judge", lambda *given: (tries.append(1), judged(*given))[1])
    threads = [threading.Thread(target=verdict, args=(plan,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tries == [1]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this CPU were a GPU whose kernels nobody has tried."""
    monkeypatch.setattr(serving, "decide", decide)
    monkeypatch.setattr(graphs, "CudaDriver", StandIn)
    monkeypatch.setattr(selfcheck, "gpu_seconds", lambda run: 2.0 if run.__class__.__name__ == "partial" else 1.0)


def on_gpu(**named: Any) -> tuple[FusedMobileNetV3, Tensor]:
    torch.manual_seed(0)
    return mbv3fast.small(num_classes=10, cuda_graphs=False, **named).eval(), torch.randn(SHAPE)


@pytest.mark.usefixtures("gpu")
def test_auto_serves_what_was_found_right() -> None:
    subject, x = on_gpu()
    with torch.inference_mode():
        assert subject.explain(x).backend == "triton"
        torch.testing.assert_close(subject(x), subject.reference_forward(x), rtol=1e-4, atol=1e-5)
    assert len(json.loads(records.record_path(selfcheck.FILE).read_text())) == 1


@pytest.mark.usefixtures("gpu")
def test_auto_leaves_what_was_found_wrong_to_pytorch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    break_op(monkeypatch, "linear", spoil_first(50.0))
    subject, x = on_gpu()
    with torch.inference_mode():
        assert torch.equal(subject(x), subject.reference_forward(x))
        decision = subject.explain(x)
    assert not decision.fused
    assert decision.reason.startswith("linear of classifier.3 errs by ")
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert any(message.startswith("self-check: linear of classifier.3") for message in warnings)


@pytest.mark.usefixtures("gpu")
def test_what_was_asked_for_is_not_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "judge", lambda *_: pytest.fail("checked"))
    subject, x = on_gpu(backend="triton")
    with torch.inference_mode():
        subject(x)
