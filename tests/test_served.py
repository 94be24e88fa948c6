"""How a GPU's models are served, by stand-ins for the GPU and its kernels: graphs, stale weights, binding, parts."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mbv3fast
from mbv3fast import engine as engine_module
from mbv3fast import fast, graphs, serving
from mbv3fast.backend import BackendError, Decision
from mbv3fast.engine import Engine
from mbv3fast.fast import FusedMobileNetV3
from tests.networks import trained_small
from tests.stand_ins import StandIn, references_for_kernels

pytest.importorskip("triton")
SHAPE = (2, 3, 40, 52)
TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """As if this CPU were a GPU that Triton serves; what captured there."""
    driver = StandIn()
    references_for_kernels(monkeypatch)
    monkeypatch.setattr(serving, "decide", lambda *_: Decision(True, "Triton: fused kernels", "triton"))
    monkeypatch.setattr(graphs, "CudaDriver", lambda: driver)
    return driver


def subject(**named: Any) -> tuple[FusedMobileNetV3, Tensor]:
    model = copy.deepcopy(trained_small())
    for name, value in {"backend": "triton", **named}.items():
        setattr(model, name, value)
    return model, torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def assert_right(model: FusedMobileNetV3, x: Tensor) -> None:
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model.reference_forward(x), **TOLERANCE)


def test_a_second_call_replays(gpu: StandIn) -> None:
    model, x = subject()
    for _ in range(3):
        x.normal_()
        assert_right(model, x)
    assert len(gpu.captures) == 1


def test_without_graphs_each_call_launches(gpu: StandIn) -> None:
    model, x = subject(cuda_graphs=False)
    for _ in range(2):
        assert_right(model, x)
    assert gpu.captures == []


def scale(model: FusedMobileNetV3) -> None:
    with torch.no_grad():
        model.features[3].project[0].weight.mul_(1.5)


def move_statistics(model: FusedMobileNetV3) -> None:
    model.features[5].depthwise[1].running_mean.add_(0.3)


def load(model: FusedMobileNetV3, **named: bool) -> None:
    torch.manual_seed(1)
    model.load_state_dict(mbv3fast.small(num_classes=10).state_dict(), **named)


def step(model: FusedMobileNetV3, **named: bool) -> None:
    parameter = model.classifier[3].weight
    parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD([parameter], lr=0.1, **named).step()
    parameter.grad = None


def train_a_step(model: FusedMobileNetV3) -> None:
    model.train()
    with torch.no_grad():
        model(torch.randn(4, 3, 32, 32))
    model.eval()


def replace_classifier(model: FusedMobileNetV3) -> None:
    model.classifier[3] = torch.nn.Linear(1024, 10)


def write_unseen(model: FusedMobileNetV3) -> None:
    model.classifier[3].bias.data[3] = 7.0
    model.repack()


EDITS: dict[str, Callable[[FusedMobileNetV3], Any]] = {
    "parameter": scale,
    "statistics": move_statistics,
    "load": load,
    "load, assigned": lambda model: load(model, assign=True),
    "optimizer": step,
    "fused optimizer": lambda model: step(model, fused=True),
    "training": train_a_step,
    "classifier": replace_classifier,
    "unseen write, repacked": write_unseen,
    "preprocessing": lambda model: setattr(model, "preprocess", mbv3fast.Preprocess(mean=(0, 0, 0))),
}


@pytest.mark.parametrize("edit", EDITS)
def test_no_graph_outlives_its_weights(edit: str) -> None:
    model, x = subject()
    given = torch.randint(0, 256, SHAPE, dtype=torch.uint8) if edit == "preprocessing" else x
    with torch.inference_mode():
        before = model(given)
    EDITS[edit](model)
    assert_right(model, given)
    with torch.inference_mode():
        assert not torch.allclose(model(given), before, **TOLERANCE)


def test_half_and_copies_have_engines_of_their_own() -> None:
    model, x = subject()
    assert_right(model, x)
    twin = copy.deepcopy(model)
    scale(twin)
    assert_right(twin, x)
    assert_right(model, x)
    model.half()
    with torch.inference_mode():
        assert model(x.half()).dtype == torch.float16


def test_results_are_the_callers_own() -> None:
    model, x = subject()
    with torch.inference_mode():
        first = model(x)
        kept = first.clone()
        model(torch.randn(SHAPE))
    assert torch.equal(first, kept)


def test_large_batches_run_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = subject(micro_batch=2)
    x = torch.randn(5, *SHAPE[1:])
    sizes: list[int] = []
    forward = Engine._forward
    monkeypatch.setattr(Engine, "_forward", lambda self, part: (sizes.append(len(part)), forward(self, part))[1])
    assert_right(model, x)
    assert sizes[:3] == [2, 2, 1]


def test_parts_keep_activations_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = subject()
    with torch.inference_mode():
        service = model.service(x)
    assert service is not None
    one = service.engine.plan.peak_bytes((1, 3, 224, 224))
    assert service.engine.images_at_once((10_000, 3, 224, 224)) == engine_module.MEMORY // one
    monkeypatch.setattr(engine_module, "MEMORY", 1)
    assert service.engine.images_at_once((8, 3, 224, 224)) == 1


@pytest.mark.parametrize("micro_batch", [0, -1])
def test_a_part_has_an_image(micro_batch: int) -> None:
    with pytest.raises(ValueError, match=f"^micro_batch: got {micro_batch}, needs at least 1"):
        mbv3fast.small(micro_batch=micro_batch)


def test_feature_maps_run_at_once() -> None:
    model = mbv3fast.small(features_only=True, micro_batch=1, backend="triton").eval()
    x = torch.randn(SHAPE)
    with torch.inference_mode():
        service = model.service(x)
        assert service is not None
        assert service.engine.images_at_once(SHAPE) == SHAPE[0]
        for got, wanted in zip(model(x), model.reference_forward(x), strict=True):
            torch.testing.assert_close(got, wanted, **TOLERANCE)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_a_bound_model_reads_and_fills_where_things_lie(cuda_graphs: bool) -> None:
    model, x = subject(cuda_graphs=cuda_graphs)
    out = torch.zeros(2, 10)
    bound = model.bind(x, out)
    for edit in (None, scale, None):
        x.normal_()
        if edit:
            edit(model)
        assert bound() is out
        with torch.inference_mode():
            torch.testing.assert_close(out, model.reference_forward(x), **TOLERANCE)


def test_a_bound_model_makes_its_output() -> None:
    model, x = subject()
    bound = model.bind(x)
    assert bound() is bound.out
    assert bound.out.shape == (2, 10)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (torch.zeros(2, 9), r"out: got torch.float32 \(2, 9\) on cpu, needs torch.float32 \(2, 10\) on cpu"),
        (torch.zeros(2, 10).half(), r"out: got torch.float16 \(2, 10\) on cpu, needs torch.float32"),
    ],
)
def test_what_cannot_be_bound_is_refused(out: Tensor, message: str) -> None:
    model, x = subject()
    with pytest.raises(ValueError, match=message):
        model.bind(x, out)
    with pytest.raises(RuntimeError, match=r"bind: the model is in training mode; call eval\(\) first"):
        model.train().bind(x)


def test_warmup_captures_ahead(gpu: StandIn) -> None:
    model, x = subject()
    model.warmup([SHAPE, (1, *SHAPE[1:])])
    model.warmup([SHAPE], dtype=torch.uint8)
    assert len(gpu.captures) == 3
    assert_right(model, x)
    assert len(gpu.captures) == 3
    with pytest.raises(RuntimeError, match="warmup: the model is in training mode"):
        model.train().warmup([SHAPE])


def test_threads_and_streams(gpu: StandIn) -> None:
    model, _ = subject()
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        gpu.streams.number = seed % 2
        generator = torch.Generator().manual_seed(seed)
        try:
            for _ in range(5):
                assert_right(model, torch.randn(SHAPE, generator=generator))
        except AssertionError as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(gpu.captures) == 2


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile takes this CPU for a GPU too."""
    monkeypatch.setattr(fast, "compiles_around", lambda _: torch.compiler.is_dynamo_compiling())


@pytest.mark.usefixtures("compiling")
def test_compiled_code_calls_the_engine_and_sees_new_weights(gpu: StandIn) -> None:
    model, x = subject()
    compiled = torch.compile(lambda x: model(x * 2) + 1, backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        for edit in (None, scale, None):
            if edit:
                edit(model)
            torch.testing.assert_close(compiled(x), model.reference_forward(x * 2) + 1, **TOLERANCE)
    assert len(gpu.captures) == 2


@pytest.mark.usefixtures("compiling")
def test_compiled_copies_call_themselves() -> None:
    model, x = subject()
    twin = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    scale(twin)
    with torch.inference_mode():
        for own in (model, twin):
            compiled = torch.compile(own, backend="aot_eager", fullgraph=True)
            torch.testing.assert_close(compiled(x), own.reference_forward(x), **TOLERANCE)


@pytest.mark.usefixtures("compiling")
def test_compiled_training_traces_the_modules(gpu: StandIn) -> None:
    model, x = subject()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(x).sum().backward()
    assert model.classifier[3].weight.grad is not None
    assert gpu.captures == []


def test_a_model_that_cannot_be_fused_is_an_error_where_triton_was_asked_for() -> None:
    model, x = subject()
    model.features[2].register_forward_hook(lambda *_: None)
    with torch.inference_mode(), pytest.raises(BackendError, match=r"'triton' can't serve this model: features.2 has"):
        model(x)
    model.backend = "auto"
    assert_right(model, x)


def test_a_classifier_of_another_kind_is_left_to_pytorch() -> None:
    model, x = subject()
    model.classifier[3] = torch.nn.Sequential(torch.nn.Linear(1024, 10), torch.nn.Sigmoid())
    assert_right(model, x)
    with torch.inference_mode():
        assert "the classifier is left to PyTorch" in model.explain(x).reason
        bound = model.bind(x)
        torch.testing.assert_close(bound(), model.reference_forward(x), **TOLERANCE)
