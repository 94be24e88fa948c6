"""What `accelerate` hands back: a copy like the model, made anywhere, prepared alike, and never one that differs."""

from __future__ import annotations

import copy
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mbv3fast import AccelerationError, Preprocess, UnknownModuleError, accelerate, acceleration
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
    ours = accelerate(small)
    assert ours.training
    assert small.training
    assert not small.features[1].training
    assert idle_norms(ours) == idle_norms(small)
    assert {parameter.dtype for parameter in ours.parameters()} == {torch.float16}
    frozen = {name for name, parameter in ours.named_parameters() if not parameter.requires_grad}
    assert frozen == {name for name, parameter in small.named_parameters() if not parameter.requires_grad}
    before = ours.features[0][0].weight.clone()
    with torch.no_grad():
        small.features[0][0].weight.zero_()
    assert torch.equal(ours.features[0][0].weight, before)


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
    """Under inference_mode or a default device; the user's random numbers stay."""
    state = torch.get_rng_state()
    with torch.inference_mode(), torch.device("meta"):
        ours = accelerate(small)
    assert torch.equal(torch.get_rng_state(), state)
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
    assert accelerate(small, backend="torch").backend == "torch"
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


def test_an_engine_that_errs_is_not_handed_back(small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = FusedMobileNetV3.forward

    def wrong(self: FusedMobileNetV3, x: Tensor) -> Tensor:
        return forward(self, x) * 1.001

    monkeypatch.setattr(FusedMobileNetV3, "forward", wrong)
    with pytest.raises(AccelerationError, match=r"^the engine errs by [\d.e+-]+, [\d.e+-]+ is allowed$"):
        accelerate(small)


class Alien(nn.Module):
    """A classifier that isn't what others compare with."""

    def __init__(self, compute: Any) -> None:
        super().__init__()
        self.compute = compute

    def forward(self, x: Tensor) -> Any:
        return self.compute(x)


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (lambda x: (x, x), r"the classifier puts out a tuple, needs a tensor of floating point"),
        (lambda x: x.argmax(1), r"the classifier puts out torch\.int64, needs a tensor of floating point"),
        (lambda x: x.float() @ x.mT, r"the classifier doesn't compute in float64: .*same dtype"),
        (lambda x: x / 0, r"the outputs differ by nan in float64"),
    ],
)
def test_classifiers_that_can_not_be_compared(small: nn.Module, compute: Any, words: str) -> None:
    small.classifier[3] = Alien(compute)
    with pytest.raises((UnknownModuleError, AccelerationError), match=words):
        accelerate(small)
