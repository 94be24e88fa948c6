"""Training and averaging between two answers: optimizers move weights, some without PyTorch counting it."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mbv3fast.fast import FusedMobileNetV3
from tests.freshness import answer, assert_fresh, batch_for, subject


@pytest.mark.usefixtures("served_on")
def test_an_average_of_models_follows_its_updates() -> None:
    model = subject()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    average.update_parameters(model)
    average.eval()
    before = answer(average.module)
    with torch.no_grad():
        model.features[12][0].weight.mul_(3)
    average.update_parameters(model)
    assert_fresh(average.module, before)


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": functools.partial(torch.optim.SGD, lr=0.05, foreach=False),
    "SGD foreach": functools.partial(torch.optim.SGD, lr=0.05, foreach=True),
    "SGD fused": functools.partial(torch.optim.SGD, lr=0.05, fused=True),
    "AdamW foreach": functools.partial(torch.optim.AdamW, lr=0.01, foreach=True),
    "AdamW fused": functools.partial(torch.optim.AdamW, lr=0.01, fused=True),
}


def loss(output: Tensor) -> Tensor:
    return output.float().square().mean()


def in_training(model: FusedMobileNetV3, optimizer: torch.optim.Optimizer) -> None:
    model.train()
    loss(model(batch_for(model))).backward()
    optimizer.step()
    model.eval()


def in_eval(model: FusedMobileNetV3, optimizer: torch.optim.Optimizer) -> None:
    """Fine-tuning with frozen statistics."""
    loss(model(batch_for(model))).backward()
    optimizer.step()


def answered_before_the_step(model: FusedMobileNetV3, optimizer: torch.optim.Optimizer) -> None:
    loss(model(batch_for(model))).backward()
    answer(model)
    optimizer.step()


def by_parts(model: FusedMobileNetV3, optimizer: torch.optim.Optimizer) -> None:
    """The head trained on features that were computed once: the model's own forward never sees a gradient."""
    with torch.no_grad():
        features = model.forward_features(batch_for(model))
    answer(model)
    loss(model.classifier(features.mean((2, 3)))).backward()
    optimizer.step()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("route", [in_training, in_eval, answered_before_the_step, by_parts])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.usefixtures("served_on")
def test_optimizers(optimizer: str, route: Callable[..., None], dtype: torch.dtype) -> None:
    model = subject().to(dtype)
    before = answer(model)
    route(model, OPTIMIZERS[optimizer](model.parameters()))
    assert_fresh(model, before)
