"""What users do to a model between two forwards: each changes its answer."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector, parametrizations, parametrize, prune, vector_to_parameters

from mbv3fast.fast import FusedMobileNetV3
from tests.freshness import answer, images

LARGE_BLOCK = 2**26  # bytes; always its own mapping

Edit = Callable[[FusedMobileNetV3], Any]


def scale(path: str, factor: float = 1.5) -> Edit:
    """Multiply a parameter or buffer in place."""

    def edit(model: FusedMobileNetV3) -> None:
        with torch.no_grad():
            functools.reduce(getattr, path.split("."), model).mul_(factor)

    return edit


def assign_data(model: FusedMobileNetV3) -> None:
    """What PyTorch doesn't count."""
    parameter = model.features[12][0].weight
    parameter.data = parameter.data * 1.5


def assign_data_at_the_same_address(model: FusedMobileNetV3) -> None:
    """The allocator may hand out again the memory that an assignment freed; of blocks so large it always does."""
    parameter = model.features[12][0].weight
    values = parameter.detach().clone()

    def place(factor: float) -> None:
        block = torch.empty(LARGE_BLOCK // values.element_size(), dtype=values.dtype)
        parameter.data = block[: values.numel()].view_as(values).copy_(values * factor)

    place(1.0)
    answer(model)
    parameter.data = torch.empty(0, dtype=values.dtype)
    place(1.5)


def put(path: str, new: Callable[[], nn.Module]) -> Edit:
    """Replace a module."""
    parent, _, child = path.rpartition(".")
    return lambda model: setattr(model.get_submodule(parent), child, new())


def attributes(path: str, **values: Any) -> Edit:
    return lambda model: [setattr(model.get_submodule(path), name, value) for name, value in values.items()]


def changed_state(model: FusedMobileNetV3) -> dict[str, Tensor]:
    return {k: v * 1.02 if v.is_floating_point() else v.clone() for k, v in model.state_dict().items()}


def train_norm(model: FusedMobileNetV3) -> None:
    """Only the norm's own forward, which moves its statistics."""
    norm = model.features[12][1].train()
    norm(torch.randn(8, 576, 4, 4, generator=torch.Generator().manual_seed(0)))
    norm.eval()


def train_model(model: FusedMobileNetV3) -> None:
    """Forwards in training mode, without an optimizer."""
    model.train()
    for _ in range(3):
        model(images().flip(3))
    model.eval()


def within_inference_mode(model: FusedMobileNetV3) -> None:
    with torch.inference_mode():
        model.features[12][0].weight.mul_(1.5)


def set_vector(model: FusedMobileNetV3) -> None:
    """All parameters from one vector, as evolution strategies do it; PyTorch counts none of it."""
    vector = parameters_to_vector(model.features.parameters()).detach()
    vector_to_parameters(vector * 1.02, model.features.parameters())


def fewer_classes(model: FusedMobileNetV3) -> None:
    """Of the same memory."""
    last = model.classifier[3]
    last.weight.data, last.bias.data = last.weight.data[:7], last.bias.data[:7]


def transposed(model: FusedMobileNetV3) -> None:
    weight = model.features[1].block[0][0].weight
    weight.data = weight.data.transpose(2, 3)


def weight_of_no_parameter(model: FusedMobileNetV3) -> None:
    """As hypernetworks have it."""
    conv = model.features[12][0]
    weight = conv.weight.detach() * 1.5
    del conv.weight
    conv.weight = weight


def other_dictionaries(model: FusedMobileNetV3) -> None:
    """The module's own, replaced by equal ones, then changed."""
    conv = model.features[12][0]
    conv._parameters = dict(conv._parameters)
    conv._forward_hooks = OrderedDict()
    answer(model)
    conv._parameters["weight"] = nn.Parameter(conv.weight.detach() * 1.5)


def hook_in_another_dictionary(model: FusedMobileNetV3) -> None:
    block = model.features[5]
    block._forward_hooks = OrderedDict()
    answer(model)
    block._forward_hooks[0] = lambda _module, _inputs, output: output * 2


def stuck_dropout(model: FusedMobileNetV3) -> None:
    model.classifier[2].p = 1.0
    model.classifier[2].train()


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


CONV, NORM, BLOCK = "features.12.0", "features.12.1", "features.5"
SE = f"{BLOCK}.block.2"

EDITS: dict[str, Edit] = {
    **{
        f"{path} in place": scale(path)
        for path in (
            *(f"{CONV}.weight", f"{NORM}.weight", f"{NORM}.bias", f"{NORM}.running_mean", f"{NORM}.running_var"),
            *(f"{SE}.fc1.weight", f"{SE}.fc1.bias", f"{SE}.fc2.weight", f"{SE}.fc2.bias"),
            *("classifier.0.weight", "classifier.0.bias", "classifier.3.weight", "classifier.3.bias"),
        )
    },
    "in place under inference_mode": within_inference_mode,
    "data assigned": assign_data,
    "data assigned at the same address": assign_data_at_the_same_address,
    "vector": set_vector,
    "fewer classes": fewer_classes,
    "transposed": transposed,
    "weight of no parameter": weight_of_no_parameter,
    "other dictionaries": other_dictionaries,
    "hook in another dictionary": hook_in_another_dictionary,
    "own way of a convolution": lambda m: setattr(
        m.features[12][0], "_conv_forward", lambda x, *_: x.repeat(1, 6, 1, 1)
    ),
    "a new parameter": lambda m: setattr(m.features[12][0], "weight", nn.Parameter(m.features[12][0].weight * 1.5)),
    "a bias where there was none": attributes("features.0.0", bias=nn.Parameter(torch.ones(16))),
    "no norm weight": attributes(NORM, weight=None),
    "norm trained": train_norm,
    "model trained": train_model,
    "norm in training": lambda m: m.features[12][1].train(),
    "dropout in training": stuck_dropout,
    "state loaded": lambda m: m.load_state_dict(changed_state(m)),
    "state assigned": lambda m: m.load_state_dict(changed_state(m), assign=True),
    "part loaded": lambda m: m.features[12].load_state_dict(changed_state(m.features[12])),
    "half": lambda m: m.half(),
    "bfloat16": lambda m: m.to(torch.bfloat16),
    "half and back": lambda m: m.half().float(),
    "features half and back": lambda m: m.features.half().float(),
    "double": lambda m: m.double().classifier[3].weight.data.mul_(1.5),
    "eps": attributes(NORM, eps=1.0),
    "stride": attributes("features.2.block.1.0", stride=(1, 1)),
    "dilation": attributes("features.4.block.1.0", dilation=(2, 2)),
    "dilation and padding": attributes(f"{BLOCK}.block.1.0", dilation=(2, 2), padding=(4, 4)),
    "padding": attributes("features.0.0", padding=(0, 0)),
    "padding mode": lambda m: put("features.0.0", lambda: mirrored(m.features[0][0]))(m),
    "residual": attributes(BLOCK, has_residual=False),
    "other activation": put("features.0.2", nn.ReLU),
    "unknown activation": put("features.0.2", nn.Tanh),
    "block gone": put(BLOCK, nn.Identity),
    "block twice": lambda m: put("features.6", lambda: m.features[5])(m),
    "norm gone": put(NORM, nn.Identity),
    "squeeze-excite gone": put(SE, nn.Identity),
    "gate": put(f"{SE}.scale_activation", nn.Sigmoid),
    "layer appended": lambda m: m.features.append(Doubled()),
    "part appended": lambda m: m.features[12].append(Doubled()),
    "features cut and joined": lambda m: setattr(m, "features", nn.Sequential(*m.features[:5], *m.features[6:])),
    "pool": put("avgpool", lambda: nn.AdaptiveMaxPool2d(1)),
    "head activation": put("classifier.1", nn.ReLU),
    "last layer": put("classifier.3", lambda: nn.Linear(1024, 7)),
    "last layers": put("classifier.3", lambda: nn.Sequential(nn.Linear(1024, 32), nn.GELU(), nn.Linear(32, 7))),
    "last layer appended": lambda m: m.classifier.append(nn.ReLU()),
    "head reset": lambda m: m.reset_classifier(7),
    "head gone": put("classifier", nn.Identity),
    "shared head activation": lambda m: put("classifier", lambda: with_shared_activation(m.classifier))(m),
    "parametrized": lambda m: parametrize.register_parametrization(m.features[12][0], "weight", Doubled()),
    "parametrized head": lambda m: parametrize.register_parametrization(m.classifier[3], "weight", Doubled()),
    "weight norm": lambda m: scale("classifier.3.parametrizations.weight.original0")(weight_norm(m)),
    "pruned": lambda m: prune.l1_unstructured(m.features[12][0], "weight", 0.5),
    "pruned head": lambda m: prune.l1_unstructured(m.classifier[3], "weight", 0.5),
    "pruned for good": lambda m: prune.remove(prune.l1_unstructured(m.classifier[3], "weight", 0.5), "weight"),
    "another class": attributes("features.0.2", __class__=nn.Tanh),
    "another order": lambda m: m.classifier._modules.update({"1": m.classifier._modules.pop("1")}),
    "own forward": lambda m: setattr(m.features[5], "forward", lambda x: 2 * x),
    "own forward of a convolution": lambda m: setattr(
        m.features[0][0], "forward", lambda x: x.repeat(1, 6, 1, 1)[:, :16]
    ),
    "own forward_head": lambda m: setattr(m, "forward_head", lambda x: x.mean((2, 3))),
}


def mirrored(conv: nn.Conv2d) -> nn.Conv2d:
    other = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False, padding_mode="reflect")
    other.load_state_dict(conv.state_dict())
    return other


def with_shared_activation(classifier: nn.Sequential) -> nn.Sequential:
    activation = nn.ReLU()
    return nn.Sequential(classifier[0], activation, classifier[3], activation)


def weight_norm(model: FusedMobileNetV3) -> FusedMobileNetV3:
    parametrizations.weight_norm(model.classifier[3])
    return model
