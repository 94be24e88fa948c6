"""Whole networks on the Triton plan: the very steps, buffers and launches of a GPU, in Triton's interpreter."""

from __future__ import annotations

import copy
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from mbv3fast import Preprocess, engine
from mbv3fast.launching import watch_launches
from mbv3fast.ops.target import Target
from mbv3fast.traffic import traffic_of
from tests.networks import (
    calibrated_features,
    calibrated_large,
    digit_tiles,
    dilated_features,
    photographs,
    trained_small,
)
from tests.numerics import Network, assert_agrees, assert_engine_agrees

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1: `make test-kernels`", allow_module_level=True)
interpreter = pytest.importorskip("triton.runtime.interpreter")

NETWORKS: dict[str, Callable[[], Network]] = {"large": calibrated_large, "small": trained_small}
HALF, FLOAT = torch.float16, torch.float32


def on_triton(model: Network, dtype: torch.dtype = FLOAT) -> Any:
    """A copy that asks for our kernels."""
    own = copy.deepcopy(model).to(dtype)
    own.backend = "triton"
    return own.eval()


@pytest.mark.parametrize("dtype", [FLOAT, HALF])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, dtype: torch.dtype) -> None:
    x = digit_tiles()[:2] if name == "small" else photographs(2, 64)
    assert_engine_agrees(on_triton(NETWORKS[name](), dtype), x.to(dtype))


@pytest.mark.parametrize(("name", "dtype"), [("large", HALF), ("small", FLOAT)])
def test_networks_at_224(name: str, dtype: torch.dtype) -> None:
    assert_engine_agrees(on_triton(NETWORKS[name](), dtype), photographs(1, 224).to(dtype))


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_at_odd_sizes(name: str) -> None:
    x = photographs(3, 97)[:, :, :, :41]
    assert_engine_agrees(on_triton(NETWORKS[name]()), x)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_at_a_gpus_configurations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "target_of", lambda *_, **__: Target())
    x = digit_tiles()[:1] if name == "small" else photographs(1, 64)
    assert_engine_agrees(on_triton(NETWORKS[name](), HALF), x.half())


@pytest.mark.parametrize("network", [calibrated_features, dilated_features])
def test_feature_maps(network: Callable[[], Network]) -> None:
    assert_engine_agrees(on_triton(network(), HALF), photographs(1, 64).half())


@pytest.mark.parametrize("count", [10, pytest.param(40, marks=pytest.mark.slow)])
def test_the_digits_are_read_as_the_reference_reads_them(count: int) -> None:
    model, x = on_triton(trained_small(), HALF), digit_tiles()[:count].half()
    with torch.inference_mode():
        got, wanted = model(x).argmax(1), model.reference_forward(x).argmax(1)
    assert torch.equal(got, wanted)
    assert (got == torch.arange(count) % 10).float().mean() > 0.9


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_bytes_are_normalised_in_the_stem(layout: str) -> None:
    model = on_triton(trained_small())
    model.preprocess = Preprocess(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    x = torch.randint(0, 256, (1, 3, 37, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    given = x.permute(0, 2, 3, 1).contiguous() if layout == "NHWC" else x
    with torch.inference_mode():
        got, plain = model(given), model.reference_forward(given)
        mean, std = (torch.tensor(v).double()[:, None, None] for v in (model.preprocess.mean, model.preprocess.std))
        truth = copy.deepcopy(model).double().reference_forward((x.double() / 255 - mean) / std)
    assert_agrees(got, plain, truth)


class Watching(TorchDispatchMode):
    """Counts the aten ops that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen[func.overloadpacket.__name__] += not func.is_view
        return func(*args, **(kwargs or {}))


def test_no_op_of_pytorch_computes_anything() -> None:
    model, x = on_triton(trained_small()), digit_tiles()[:1]
    with torch.inference_mode():
        run = model.service(x).engine
        with Watching() as watching:
            run(x)
    # Memory alone: buffers, and the interpreter's copies of its arguments.
    assert set(+watching.seen) <= {"empty", "new_empty", "set_", "copy_"}, watching.seen


@pytest.mark.parametrize(("name", "launches"), [("large", 46), ("small", 37)])
def test_launches_and_bytes_are_those_that_the_plan_counts(
    name: str, launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen at the launcher, which a forward passes as on a GPU but for the kernels themselves."""
    monkeypatch.setattr(engine, "target_of", lambda *_, **__: Target())
    model, x = on_triton(NETWORKS[name](), HALF), torch.zeros(2, 3, 224, 224, dtype=HALF)
    with torch.inference_mode():
        service = model.service(x)
        plan = service.engine.plan
        service.engine.images_at_once(tuple(x.shape))  # counted by a dry run, once
        seen: list[Any] = []
        monkeypatch.setattr(interpreter.GridExecutor, "__call__", lambda *_, **__: None)
        with watch_launches(seen.append):
            service.engine(x)
    weights = {StorageWeakRef(t.untyped_storage()) for step in plan.steps for t in step.tensors.values()}
    counted, totals = traffic_of(seen, weights), plan.to_dict(tuple(x.shape))["totals"]
    assert counted.launches == totals["launches"] == launches
    assert counted.read == totals["bytes_read"]
    assert counted.written == totals["bytes_written"]
    assert counted.partial == totals["partial_bytes"]
    if name == "large":
        assert counted.read + counted.written <= 15.5e6 * 2
