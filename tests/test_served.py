"""How a GPU's models are served, by stand-ins for GPU and kernels: replays, whose tensors are whose, threads."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import mbv3fast
from mbv3fast import service
from mbv3fast.backend import BackendError
from mbv3fast.fast import FusedMobileNetV3
from mbv3fast.graphs import GraphRunner
from mbv3fast.selfcheck import Verdict
from tests.served import SHAPE, TOLERANCE, assert_right, scale, subject
from tests.stand_ins import StandIn, in_threads

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("gpu")


def test_a_second_call_replays(gpu: StandIn) -> None:
    model, x = subject()
    for _ in range(3):
        x.normal_()
        assert_right(model, x)
    assert len(gpu.captures) == 1


def test_what_one_mode_captured_serves_the_other(gpu: StandIn) -> None:
    for modes in ((torch.inference_mode, torch.no_grad), (torch.no_grad, torch.inference_mode)):
        model, x = subject()
        for mode in modes:
            with mode():
                torch.testing.assert_close(model(x), model.reference_forward(x), **TOLERANCE)
    assert len(gpu.captures) == 2


def test_make_fx_sees_the_modules() -> None:
    model, x = subject()
    assert_right(model, x)
    with torch.no_grad():
        traced = make_fx(lambda x: model(x))(x)
        y = torch.randn(SHAPE)
        torch.testing.assert_close(traced(y), model.reference_forward(y), **TOLERANCE)


def test_negated_memory_is_read_as_what_it_means() -> None:
    model, x = subject(cuda_graphs=False)
    negated = torch.complex(torch.zeros_like(x), x).conj().imag
    assert negated.is_neg()
    assert_right(model, negated)


def test_methods_of_a_subclass_are_called() -> None:
    class Doubled(FusedMobileNetV3):
        def normalised(self, x: torch.Tensor) -> torch.Tensor:
            return super().normalised(x) * 2

    model, _ = subject()
    assert_right(model, torch.randint(0, 256, SHAPE, dtype=torch.uint8))
    model.__class__ = Doubled
    assert_right(model, torch.randint(0, 256, SHAPE, dtype=torch.uint8))


def test_a_plan_has_tensors_of_its_own() -> None:
    """A replay may read them when the model's are gone."""
    model, _ = subject()
    theirs = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    ours = {tensor.untyped_storage().data_ptr() for step in model.plan().steps for tensor in step.tensors.values()}
    assert not theirs & ours


@pytest.mark.parametrize("x_requires_grad", [False, True])
def test_gradients_pass_by_the_replay(x_requires_grad: bool) -> None:
    model, x = subject(backend="auto")
    assert_right(model, x)
    x.requires_grad_(x_requires_grad)
    model(x).sum().backward()
    assert model.classifier[3].weight.grad is not None
    assert (x.grad is not None) is x_requires_grad
    x.requires_grad_(False)
    assert_right(model, x)


def test_what_is_no_input_after_a_replay_is_still_refused() -> None:
    model, x = subject()
    assert_right(model, x)
    with torch.inference_mode():
        for wrong in (x[:0], x[0], x[:, :2], x.double()):
            with pytest.raises(ValueError, match=r"^x: got"):
                model(wrong)
        with pytest.raises(TypeError, match=r"^x: got ndarray"):
            model(x.numpy())


def test_bytes_follow_a_new_normalisation() -> None:
    model, _ = subject()
    x = torch.randint(0, 256, SHAPE, dtype=torch.uint8)
    assert_right(model, x)
    model.preprocess = mbv3fast.Preprocess(mean=(0, 0, 0))
    assert_right(model, x)


@pytest.mark.parametrize("reason", ["", "slower than PyTorch"])
def test_a_self_check_settles_whether_graphs_are_replayed(
    reason: str, gpu: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    replays: list[int] = []
    replay = GraphRunner.replay
    monkeypatch.setattr(GraphRunner, "replay", lambda self, x: (replays.append(1), replay(self, x))[1])
    monkeypatch.setattr(service, "judge", lambda _plan, _shape, _device, ours, _theirs: (ours(), Verdict(reason))[1])
    model, x = subject(backend="auto")
    for _ in range(3):
        assert_right(model, x)
    assert len(gpu.captures) == 1
    assert len(replays) == (0 if reason else 2)


def test_without_graphs_each_call_launches(gpu: StandIn) -> None:
    model, x = subject(cuda_graphs=False)
    for _ in range(2):
        assert_right(model, x)
    assert gpu.captures == []


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


def test_warmup_captures_ahead(gpu: StandIn) -> None:
    model, x = subject()
    model.warmup([SHAPE, (1, *SHAPE[1:])])
    model.warmup([SHAPE], dtype=torch.uint8)
    assert len(gpu.captures) == 3
    assert_right(model, x)
    assert len(gpu.captures) == 3
    with pytest.raises(TypeError, match=r"shapes: got \[2, 3, 40, 52\], needs a list of shapes"):
        model.warmup(SHAPE)
    with pytest.raises(RuntimeError, match="warmup: the model is in training mode"):
        model.train().warmup([SHAPE])


def test_threads_and_streams(gpu: StandIn) -> None:
    model, _ = subject()

    def work(seed: int) -> None:
        gpu.streams.number = seed % 2
        generator = torch.Generator().manual_seed(seed)
        for _ in range(5):
            assert_right(model, torch.randn(SHAPE, generator=generator))

    in_threads(work, 4)
    assert len(gpu.captures) == 2


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
