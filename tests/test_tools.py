"""What PyTorch's own tools do with the models: save, copy, compile, export, trace, vmap, functional_call."""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import mbv3fast
from mbv3fast import Preprocess
from mbv3fast.description import read_description
from mbv3fast.fast import FusedMobileNetV3
from tests.networks import digit_tiles, trained_small

RELATIVE = 1e-5  # of the largest logit; tools run the same float32 arithmetic in another order


def subject() -> tuple[FusedMobileNetV3, Tensor]:
    return copy.deepcopy(trained_small()), digit_tiles()[:4]


def answer(model: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    with torch.inference_mode():
        return model(x)


def assert_same(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=RELATIVE * expected.abs().max().item())


def through_file(state: Any, path: Path) -> Any:
    torch.save(state, path)
    return torch.load(path, weights_only=True)


def test_a_saved_state_dict_says_what_its_tensors_cannot(tmp_path: Path) -> None:
    model, x = subject()
    loaded = through_file(model.state_dict(), tmp_path / "digits.pth")
    description = read_description(loaded)
    assert description == model.description()
    assert description.labels == tuple("0123456789")
    assert description.preprocess == Preprocess(resize=64, crop=64, mean=(0.5,) * 3, std=(0.5,) * 3)
    again = mbv3fast.small(num_classes=10).eval()
    again.load_state_dict(loaded)
    assert torch.equal(answer(again, x), answer(model, x))


def test_metadata_keep_pytorchs_version_numbers() -> None:
    metadata = mbv3fast.small().state_dict()._metadata
    assert metadata["features.0.1"]["version"] == nn.BatchNorm2d._version


def test_a_plain_dict_loads_without_a_description() -> None:
    model, x = subject()
    again = mbv3fast.small(num_classes=10).eval()
    again.load_state_dict(dict(model.state_dict()))
    assert torch.equal(answer(again, x), answer(model, x))


@pytest.mark.parametrize("built", [False, True])
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), lambda m: through_pickle(m)]
)
def test_copies_are_equal_and_independent(duplicate: Callable[[nn.Module], nn.Module], built: bool) -> None:
    model, x = subject()
    if built:
        answer(model, x)
    expected = model.reference_forward(x)
    other = duplicate(model)
    assert_same(answer(other, x), expected)
    with torch.no_grad():
        other.features[3].project[0].weight.mul_(2)
    assert_same(answer(model, x), expected)
    assert_same(answer(other, x), other.reference_forward(x))
    assert (answer(other, x) - expected).abs().max() > 0.1


def through_pickle(model: nn.Module) -> nn.Module:
    """The whole model by torch.save, as older training scripts do it."""
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


def test_a_copy_carries_no_engine() -> None:
    model, x = subject()
    size = len(pickle.dumps(model))
    answer(model, x)
    assert len(pickle.dumps(model)) == size


@pytest.mark.parametrize("grad", [False, True])
def test_compile_sees_one_graph(grad: bool) -> None:
    model, x = subject()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.set_grad_enabled(grad):
        assert_same(compiled(x), model.reference_forward(x))


def test_compile_in_training() -> None:
    model, x = subject()
    twin = copy.deepcopy(model).train()
    twin.classifier[2].p = model.classifier[2].p = 0.0
    torch._dynamo.reset()
    compiled = torch.compile(model.train(), backend="aot_eager", fullgraph=True)
    compiled(x).square().sum().backward()
    twin(x).square().sum().backward()
    assert_same(model.features[0][0].weight.grad, twin.features[0][0].weight.grad)
    assert_same(model.features[5].depthwise[1].running_var, twin.features[5].depthwise[1].running_var)


@pytest.mark.slow
def test_compile_with_inductor() -> None:
    model, x = subject()
    torch._dynamo.reset()
    assert_same(answer(torch.compile(model, fullgraph=True), x), answer(model, x))


@pytest.mark.parametrize("dynamic", [False, True])
def test_export(dynamic: bool) -> None:
    model, x = subject()
    shapes = ({0: torch.export.Dim("batch", min=1, max=64)},) if dynamic else None
    with torch.no_grad():
        exported = torch.export.export(model, (x,), dynamic_shapes=shapes).module()
    batch = x[:3] if dynamic else x
    assert_same(answer(exported, batch), answer(model, batch))


@pytest.mark.parametrize("same_padding", [False, True])
def test_symbolic_trace(same_padding: bool) -> None:
    """torch.fx, for any size of input."""
    torch.manual_seed(0)
    model = mbv3fast.small(num_classes=10, tf_same_padding=same_padding).eval()
    graph = torch.fx.symbolic_trace(model)
    for size in (64, 97):
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
        assert_same(answer(graph, x), model.reference_forward(x))


def test_jit_trace_is_silent_and_fits_other_batches() -> None:
    model, x = subject()
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(model, x)
    assert_same(answer(traced, x[:2]), answer(model, x[:2]))


def test_vmap_over_images() -> None:
    model, x = subject()
    with torch.no_grad():
        mapped = torch.func.vmap(lambda image: model(image[None])[0])(x)
    assert_same(mapped, answer(model, x))


def test_vmap_over_an_ensemble() -> None:
    model, x = subject()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.classifier[0].weight.mul_(1.5)
    parameters, buffers = torch.func.stack_module_state([model, other])
    empty = copy.deepcopy(model).to("meta")
    with torch.no_grad():
        both = torch.func.vmap(lambda p, b: torch.func.functional_call(empty, (p, b), (x,)))(parameters, buffers)
    assert_same(both[0], answer(model, x))
    assert_same(both[1], answer(other, x))


def test_functional_call_uses_its_tensors_and_leaves_the_model() -> None:
    model, x = subject()
    before = answer(model, x)
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.1)
    tensors = dict(other.named_parameters())
    assert_same(answer(lambda batch: torch.func.functional_call(model, tensors, (batch,)), x), answer(other, x))
    assert torch.equal(answer(model, x), before)


def test_func_grad_reaches_the_parameters() -> None:
    model, x = subject()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    gradients = torch.func.grad(lambda p: torch.func.functional_call(model, p, (x,)).square().sum())(parameters)
    model.reference_forward(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert_same(gradients[name], parameter.grad)


def test_forward_mode_ad_reaches_the_parameters() -> None:
    """Forward-mode derivatives need no graph, so that people take them under no_grad."""
    model, x = subject()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    _, expected = torch.func.jvp(lambda p: torch.func.functional_call(model, p, (x,)), (parameters,), (parameters,))
    with torch.no_grad(), forward_ad.dual_level():
        duals = {name: forward_ad.make_dual(p, p) for name, p in parameters.items()}
        tangent = forward_ad.unpack_dual(torch.func.functional_call(model, duals, (x,))).tangent
    assert tangent is not None
    assert_same(tangent, expected)


def test_a_model_on_meta_has_shapes() -> None:
    with torch.device("meta"):
        model = mbv3fast.small(num_classes=10).eval()
    with torch.inference_mode():
        out = model(torch.empty(5, 3, 64, 64, device="meta"))
    assert (out.shape, out.device.type) == ((5, 10), "meta")
