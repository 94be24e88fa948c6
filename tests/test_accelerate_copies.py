"""What `accelerate` hands back: a copy like the model, made anywhere, prepared alike, and never one that differs."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mbv3fast import AccelerationError, BackendError, Preprocess, UnknownModuleError, accelerate, acceleration
from mbv3fast.fast import FusedMobileNetV3
from tests.networks import photographs
from tests.numerics import assert_close
from tests.peers import trained


@pytest.fixture
def small(torchvision: ModuleType) -> nn.Module:
    return trained(torchvision.models.mobilenet_v3_small(num_classes=5))


def idle_norms(model: nn.Module) -> set[str]:
    return {
        name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d) and not module.training
    }


def test_the_result_is_a_copy_in_the_models_mode_and_dtype(small: nn.Module) -> None:
    small.half().train()
    for parameter in small.features[:3].parameters():
        parameter.requires_grad_(False)
    small.features[1].eval()  # a part that a user froze
    small.features[2].block[0][1].momentum, small.features[0][1].momentum = 0.3, None
    ours = accelerate(small)
    assert ours.training
    assert small.training
    assert not small.features[1].training
    assert idle_norms(ours) == idle_norms(small)
    assert (ours.features[2].block[0][1].momentum, ours.config.bn_momentum) == (0.3, 0.1)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float16}
    frozen = {name for name, parameter in ours.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in small.named_parameters() if not parameter.requires_grad}
    before = ours.features[0][0].weight.clone()
    with torch.no_grad():
        small.features[0][0].weight.zero_()
    assert torch.equal(ours.features[0][0].weight, before)


class Tied(nn.Module):
    """A part of a classifier that shares a tensor with the features."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.mean()


@pytest.mark.parametrize("part", ["classifier", "classifier.3"])
def test_what_a_classifier_shares_it_still_does(small: nn.Module, part: str) -> None:
    small.set_submodule(part, Tied(small.features[0][0].weight))
    ours = accelerate(small)
    assert ours.get_submodule(part).weight is ours.features[0][0].weight


def test_frozen_heads_of_timms_stay_so(timm: ModuleType) -> None:
    model = timm.create_model("mobilenetv3_small_050", num_classes=3)
    model.conv_head.requires_grad_(False)
    ours = accelerate(model)
    assert [p.requires_grad for p in ours.classifier.parameters()] == [False, False, True, True]


def test_every_tensor_keeps_its_own_dtype(small: nn.Module) -> None:
    """Batch norms in float32 beside half a model: PyTorch computes them, so that it still serves, and says so."""
    small.half()
    for module in small.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    ours, x = accelerate(small), photographs(1, 64).half()
    with torch.inference_mode():
        assert torch.equal(ours(x), small(x))
        assert "several dtypes: torch.float16, torch.float32" in ours.explain(x).reason
    dtypes = {name: tensor.dtype for name, tensor in small.state_dict().items()}
    assert {name: tensor.dtype for name, tensor in ours.state_dict().items()} == dtypes


def test_it_may_be_called_anywhere(small: nn.Module) -> None:
    """Under inference_mode or a default device; the user's random numbers stay, and nothing is built for gradients."""
    grads: list[bool] = []
    small.classifier.append(Alien(lambda x: (grads.append(torch.is_grad_enabled()), x * torch.ones(()))[1]))
    state = torch.get_rng_state()
    accelerate(small)
    assert torch.equal(torch.get_rng_state(), state)
    assert set(grads) == {False}
    with torch.inference_mode(), torch.device("meta"):
        ours = accelerate(small)
    assert ours._built is None, "what the comparison needed"
    with torch.inference_mode():
        assert ours.explain(photographs(1, 64)).fused
        assert_close(ours(photographs(1, 64)), small(photographs(1, 64)))


def test_images_are_prepared_as_the_models_were(timm: ModuleType, small: nn.Module) -> None:
    tf = accelerate(timm.create_model("tf_mobilenetv3_small_075"))
    assert tf.transforms() == Preprocess(mean=(0.5,) * 3, std=(0.5,) * 3)
    assert accelerate(timm.create_model("mobilenetv3_small_100")).transforms() == Preprocess(interpolation="bicubic")
    grey = timm.create_model("mobilenetv3_small_100", in_chans=1)  # which pretrained_cfg doesn't speak of
    assert accelerate(grey).transforms() == Preprocess.default(1)
    assert accelerate(small).transforms() == Preprocess()
    own = Preprocess(mean=(0, 0, 0), std=(1, 1, 1))
    x = torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8)
    with torch.inference_mode():
        assert_close(accelerate(small, preprocess=own)(x), small(x / 255))


def test_arguments_are_those_of_large(small: nn.Module) -> None:
    ours = accelerate(small, backend="torch", cuda_graphs=False, micro_batch=3)
    assert (ours.backend, ours.cuda_graphs, ours.micro_batch) == ("torch", False, 3)
    with pytest.raises(BackendError, match="'layers' is of triton's kernels, but the backend is 'torch'"):
        accelerate(small, backend="torch", plan="layers")
    with pytest.raises(ValueError, match="backend: got 'x'"):
        accelerate(copy.deepcopy(small), backend="x")
    with pytest.raises(ValueError, match="preprocess: got mean and std of 1, needs 3 channels"):
        accelerate(small, preprocess=Preprocess.default(1))


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ("features.6.block.1.1", r"^the features differ by [\d.e+-]+ in float64, where the largest is [\d.e+-]+$"),
        ("classifier.3", r"^the outputs differ by [\d.e+-]+ in float64"),
    ],
)
def test_modules_that_differ_are_not_handed_back(
    small: nn.Module, part: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By however little, beside however large an output."""
    fill = acceleration.fill
    small.classifier[3].bias.data[0] = 1e4

    def wrong(ours: FusedMobileNetV3, network: Any) -> None:
        fill(ours, network)
        with torch.no_grad():
            ours.get_submodule(part).weight[3] *= 1 + 1e-4

    monkeypatch.setattr(acceleration, "fill", wrong)
    with pytest.raises(AccelerationError, match=words):
        accelerate(small)


def test_a_padding_that_differs_at_even_sizes_is_not_handed_back(
    timm: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill = acceleration.fill

    def wrong(ours: FusedMobileNetV3, network: Any) -> None:
        fill(ours, network)
        ours.features[0][0].__class__ = nn.Conv2d
        ours.features[0][0].padding = (1, 1)

    monkeypatch.setattr(acceleration, "fill", wrong)
    with pytest.raises(AccelerationError, match="the features differ"):
        accelerate(trained(timm.create_model("tf_mobilenetv3_small_075")))


@pytest.mark.parametrize(("dtype", "floor"), [(torch.float32, 1e-4), (torch.float16, 8 * 2.0**-10)])
@pytest.mark.parametrize("autocast", [False, True])
def test_an_engine_that_errs_is_not_handed_back(
    small: nn.Module, dtype: torch.dtype, floor: float, autocast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As docs/numerics.md says; the engine is asked under autocast too."""
    small.to(dtype)
    errors: list[float] = []
    fraction = 0.8

    def wrong(_self: FusedMobileNetV3, x: Tensor) -> Tensor:
        truth = copy.deepcopy(small).double()(x.double())
        error = (small(x).double() - truth).abs().max().item()
        errors.append(4 * error + floor * truth.abs().max().item())
        truth[0, 0] += fraction * errors[-1]
        return truth.to(dtype)

    monkeypatch.setattr(FusedMobileNetV3, "forward", wrong)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        accelerate(small)
        fraction = 1.2
        with pytest.raises(AccelerationError, match=r"^the engine errs by [\d.e+-]+, [\d.e+-]+ is allowed$"):
            accelerate(small)


class Alien(nn.Module):
    """A classifier that isn't what others compare with."""

    def __init__(self, compute: Any) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Any:
        return self.compute(x)


def narrowly(x: Tensor) -> Tensor:
    return x.float() @ x.mT if x.dtype == torch.float64 else x


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (lambda x: (x, x), r"the classifier puts out a tuple, needs a tensor of floating point"),
        (lambda x: x.argmax(1), r"the classifier puts out torch\.int64, needs a tensor of floating point"),
        (
            lambda x: x.float() @ x.mT if x.dtype == torch.float64 else x,
            r"the model doesn't compute in torch\.float64: .*same dtype",
        ),
        (lambda x: x / 0, r"the outputs differ by nan in float64"),
    ],
)
def test_classifiers_that_can_not_be_compared(small: nn.Module, compute: Any, words: str) -> None:
    small.classifier[3] = Alien(compute)
    with pytest.raises((UnknownModuleError, AccelerationError), match=words):
        accelerate(small)


def test_modes_are_the_models_everywhere(small: nn.Module, timm: ModuleType) -> None:
    assert not [name for name, part in accelerate(small).named_modules() if part.training]
    small.classifier[2].train()  # for samples of what a network might say
    assert [name for name, part in accelerate(small).named_modules() if part.training] == ["classifier.2"]
    small.train()
    small.classifier.eval()
    ours = accelerate(small)
    assert (ours.training, ours.classifier[2].training, ours.classifier[0].training) == (True, False, False)
    assert accelerate(timm.create_model("mobilenetv3_small_050").train()).classifier[2].training


def test_shared_statistics_stay_shared(torchvision: ModuleType) -> None:
    """Where a model is moved or trained afterwards."""
    model = torchvision.models.mobilenet_v3_small(num_classes=5)
    model.features[6] = model.features[5]
    trained(model)
    ours, theirs = accelerate(model).double().train(), model.double().train()
    ours.classifier[2].p = theirs.classifier[2].p = 0.0
    for _ in range(2):
        x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
        torch.testing.assert_close(ours(x), theirs(x))
    x = photographs(2, 64).double()
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
    assert len(list(ours.parameters())) == len(list(theirs.parameters()))


def test_gradients_are_the_models(timm: ModuleType) -> None:
    model = trained(timm.create_model("tf_mobilenetv3_small_minimal_100", num_classes=5, drop_rate=0.2)).double()
    ours = accelerate(model)
    for network in (ours, model):
        network.train()
        torch.manual_seed(0)
        network(torch.ones(2, 3, 64, 64, dtype=torch.float64).cumsum(2) / 64).sum().backward()
    for mine, theirs in zip(ours.parameters(), model.parameters(), strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        torch.testing.assert_close(mine.grad.flatten(), theirs.grad.flatten())


@pytest.mark.parametrize("value", [Preprocess, "ImageNet", lambda x: x])
def test_a_preprocess_of_another_kind(small: nn.Module, value: Any) -> None:
    with pytest.raises(TypeError, match=r"^preprocess: got a \w+, needs an mbv3fast\.Preprocess$"):
        accelerate(small, preprocess=value)


def test_a_config_of_timms_that_says_no_preprocessing(timm: ModuleType) -> None:
    model = timm.create_model("mobilenetv3_small_050")
    for wrong in ({"crop_mode": "squash"}, {"input_size": (3, 160, 256)}, {"mean": None}):
        model.pretrained_cfg = {**timm.create_model("mobilenetv3_small_050").pretrained_cfg, **wrong}
        with pytest.raises(UnknownModuleError, match=r"^pretrained_cfg: .*; pass preprocess=$"):
            accelerate(model)
    assert accelerate(model, preprocess=Preprocess()).transforms() == Preprocess()


def test_what_can_not_be_copied_or_computed(small: nn.Module) -> None:
    kept = copy.deepcopy(small)
    kept.last = kept(photographs(1, 64))
    with pytest.raises(UnknownModuleError, match="the model can't be copied: Only Tensors created explicitly"):
        accelerate(kept)
    small.classifier.half()
    with pytest.raises(UnknownModuleError, match=r"the model doesn't compute in torch\.float32: "):
        accelerate(small)
