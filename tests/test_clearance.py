"""Which plans `auto` may choose on a GPU: those that were tried there, or that the package says have passed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mbv3fast import backend, clearance, records
from mbv3fast.backend import Request, decide, lacks_clusters
from mbv3fast.clearance import COMMITTED, commit_trial, keep_trial, tried, untried
from mbv3fast.cli import doctor

GPU = torch.device("cuda", 0)
AUTO = Request("auto", "backend")


@pytest.fixture(autouse=True)
def _a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that says that it has one, of compute capability 9.0, on which nothing was tried."""
    properties = SimpleNamespace(name="NVIDIA H100", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (properties.major, properties.minor))
    monkeypatch.setattr(records, "cuda_driver_version", lambda: 13000)
    monkeypatch.setattr(clearance, "library_sources", lambda: "the very")
    monkeypatch.setattr(clearance, "lacks_loading", lambda: "")
    monkeypatch.setattr(clearance, "COMMITTED", tmp_path / "cleared.json")
    monkeypatch.setenv(records.CACHE, str(tmp_path / "cache"))
    tried.cache_clear()
    yield
    tried.cache_clear()


def commit(**entry: Any) -> None:
    whole = {"capability": "9.0", "sources": "the very", "gpu": "", "date": ""} | entry
    clearance.COMMITTED.write_text(json.dumps([whole]))


def test_a_plan_that_nobody_has_tried_is_not_cleared() -> None:
    assert tried("blocks", GPU) is None
    assert untried("blocks", GPU) == "plan 'blocks' has not been tried on this GPU (mbv3fast doctor --check)"


def test_a_trial_counts_for_its_plan_and_what_it_was_made_with(monkeypatch: pytest.MonkeyPatch) -> None:
    keep_trial("blocks", GPU, "")
    assert untried("blocks", GPU) == ""
    assert tried("layers", GPU) is None
    (entry,) = json.loads(records.record_path("trials.json").read_text()).values()
    assert (entry["plan"], entry["reason"]) == ("blocks", "")
    assert entry["gpu"].startswith("NVIDIA H100 9.0 driver 13000 torch ")
    for name, other in {"cuda_driver_version": lambda: 13010, "sources": lambda: "others"}.items():
        tried.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(records, name, other)
            assert tried("blocks", GPU) is None


def test_a_plan_that_failed_says_how_even_where_the_package_has_it() -> None:
    commit()
    keep_trial("blocks", GPU, "it took more than 600 seconds")
    assert untried("blocks", GPU) == "plan 'blocks' failed when it was tried: it took more than 600 seconds"


@pytest.mark.parametrize(
    ("entry", "found"),
    [({}, ""), ({"sources": "others"}, None), ({"capability": "8.0"}, None)],
)
def test_the_package_clears_a_capability_for_its_very_sources(entry: dict[str, str], found: str | None) -> None:
    commit(**entry)
    assert tried("blocks", GPU) == found
    assert tried("blocks", torch.device("cpu")) is tried("layers", GPU) is None


def test_without_a_library_no_record_of_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    commit()
    monkeypatch.undo()
    monkeypatch.setattr(clearance, "lacks_loading", lambda: "not built")
    assert not clearance._is_committed(GPU)


@pytest.mark.parametrize("damage", ["{", "3", "[3]", '[{"capability": "9.0"}]', "null"])
def test_a_damaged_file_of_the_package_clears_nothing_and_is_named(
    damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    clearance.COMMITTED.write_text(damage)
    words = "; write it with mbv3fast doctor --check --commit"
    assert tried("blocks", GPU) is None
    assert f"{clearance.COMMITTED}: " in caplog.text
    assert words in caplog.text
    with pytest.raises(ValueError, match=words):
        commit_trial(clearance.COMMITTED, GPU)


def test_what_passes_can_be_committed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit(sources="old")
    commit_trial(clearance.COMMITTED, GPU)
    assert [one["sources"] for one in json.loads(clearance.COMMITTED.read_text())] == ["the very"]
    assert untried("blocks", GPU) == ""
    commit_trial(tmp_path / "new" / "cleared.json", GPU)
    monkeypatch.setattr(clearance, "COMMITTED", tmp_path / "new" / "cleared.json")
    tried.cache_clear()
    assert untried("blocks", GPU) == ""


def test_the_packages_own_file_is_whole() -> None:
    entries = json.loads(COMMITTED.read_text(encoding="utf-8"))
    assert all(entry.keys() == {"capability", "sources", "gpu", "date"} for entry in entries)


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the library has code for the GPU, and Triton is there."""
    monkeypatch.setattr(backend, "lacks_library", lambda _: "")
    monkeypatch.setattr(backend, "lacks_kernels", lambda *_: "")


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_auto_chooses_cuda_only_when_it_was_tried(dtype: torch.dtype) -> None:
    assert decide(AUTO, GPU, dtype).backend == "triton"
    keep_trial("blocks", GPU, "")
    decision = decide(AUTO, GPU, dtype)
    assert (decision.backend, decision.by_name) == ("cuda", False)  # so that the self-check has its say too
    assert decide(AUTO, GPU, torch.float32).backend == "triton"  # which no CUDA kernel takes
    keep_trial("blocks", GPU, "errs")
    assert decide(AUTO, GPU, dtype).backend == "triton"


@pytest.mark.usefixtures("both")
@pytest.mark.parametrize(
    ("reason", "said"), [("", "it has passed its trial"), ("errs", "plan 'network' failed when it was tried: errs")]
)
def test_auto_never_chooses_the_network_and_doctor_says_so(
    reason: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keep_trial("network", GPU, reason)
    assert tried("network", GPU) == reason
    assert decide(AUTO, GPU, torch.float16).backend == "triton"
    doctor._print_choices(GPU)
    words = f'no, whatever its trial says, in this version; plan="network" asks for it: {said}'
    assert f"  plan network              {words}\n" in capsys.readouterr().out


def test_which_chips_run_a_network_in_one_launch() -> None:
    assert lacks_clusters((9, 0)) == lacks_clusters((10, 0)) == lacks_clusters((10, 3)) == ""
    assert lacks_clusters((8, 9)) == "compute capability 8.9 has no clusters of blocks"
    assert lacks_clusters((12, 0)) == "compute capability 12.0 has 99 KB of shared memory for a block, needs 227"


@pytest.mark.usefixtures("both")
def test_auto_leaves_what_failed_to_pytorch_and_names_still_count() -> None:
    keep_trial("layers", GPU, "errs")
    decision = decide(AUTO, GPU, torch.float16)
    assert (decision.fused, decision.reason) == (
        False,
        "plan 'layers' failed when it was tried: errs: PyTorch runs the modules",
    )
    assert decide(Request("triton", "backend"), GPU, torch.float16).backend == "triton"
    assert decide(Request("cuda", "backend"), GPU, torch.float16).by_name
