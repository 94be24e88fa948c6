"""`accelerate`: the fused equivalent of a torchvision or timm MobileNetV3 that one already has."""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

from mbv3fast.agreement import difference
from mbv3fast.fast import FusedMobileNetV3, build
from mbv3fast.foreign import UnknownModuleError, fill, last_map, network_config, read_network, timm_preprocess
from mbv3fast.preprocess import Preprocess
from mbv3fast.weights.asbuilt import rebuilt

_SIZE = (97, 128)  # of the images that are compared: paddings of an odd and of an even size
_EXACTLY = 1e-10  # of the largest value, between two computations in float64
_FLOOR = 1e-4  # of the largest output, where kernels round in float32
_FACTOR = 4  # of the model's own error, since it and ours round differently


_Model = TypeVar("_Model", bound=nn.Module)


class AccelerationError(ValueError):
    """The fused equivalent computes something else than the model it was made of."""


@torch.inference_mode(False)  # whose tensors count no edits, so that nothing could be fused
@torch.no_grad()
def accelerate(
    model: nn.Module,
    *,
    preprocess: Preprocess | None = None,
    backend: str = "auto",
    plan: str | None = None,
    cuda_graphs: bool = True,
    micro_batch: int | None = None,
) -> FusedMobileNetV3:
    """The fused equivalent of a MobileNetV3 of torchvision or timm, on its device, in its dtypes and mode.

    Everything is read from the modules as they stand: widths, strides, dilations, paddings, eps, activations, the
    residuals, and the classifier, whatever takes its place. The result is a copy, with torchvision's module names, that
    has been compared with `model` on a random batch, in float64 and then as it is served. What no engine takes, such as
    grouped convolutions or float64, is PyTorch's there too, and `explain` says so. What only training does differently
    (timm's drop path) is not taken over. Where the modules are not what a config can say, `mbv3fast.weights.save`
    refuses the result, and its state dict fits only another that is accelerated from such a model.

    preprocess: how bytes are normalised and `transforms()` prepares images; None for what timm's `pretrained_cfg`
        says, ImageNet's where there is none.
    backend, plan, cuda_graphs, micro_batch: as of `mbv3fast.large`.

    Raises TypeError or ValueError for arguments that don't fit, BackendError where who was asked for can't serve;
    UnknownModuleError (a ValueError), which names the module, for what has no equivalent: hooks, parametrizations,
    replaced methods, other layers; AccelerationError where the results differ.
    """
    network = read_network(model)
    config = network_config(network)
    preprocess = _checked(preprocess, model, config.in_chans)
    settings = {"backend": backend, "plan": plan, "cuda_graphs": cuda_graphs, "micro_batch": micro_batch}
    with torch.device("meta"):  # fresh weights would take time, and random numbers from the user's generator
        ours = build(config, preprocess, **settings)  # type: ignore[arg-type] # each of its kind
    assert isinstance(ours, FusedMobileNetV3)
    ours.train(model.training)
    fill(ours, network)
    ours.unsaid = rebuilt(ours)
    device = network.stem.conv.module.weight.device
    with torch.device(device), torch.autocast(device.type, enabled=False):
        _compare(_copied(model), _copied(ours))
    return ours


def _checked(preprocess: Preprocess | None, model: nn.Module, channels: int) -> Preprocess | None:
    """The argument, or what the model says of itself."""
    if preprocess is None:
        return timm_preprocess(model, channels)
    if not isinstance(preprocess, Preprocess):
        raise TypeError(f"preprocess: got a {type(preprocess).__name__}, needs an mbv3fast.Preprocess")
    if len(preprocess.mean) != channels:
        raise ValueError(f"preprocess: got mean and std of {len(preprocess.mean)}, needs {channels} channels")
    return preprocess


def _copied(model: _Model) -> _Model:
    """In eval, so that nothing that is compared is left changed."""
    try:
        return copy.deepcopy(model).eval()
    except Exception as error:  # whatever users keep in their modules
        raise UnknownModuleError(f"the model can't be copied: {error}") from error


def _compare(model: nn.Module, ours: FusedMobileNetV3) -> None:
    """The modules in float64, in which a mistake can't hide behind rounding; what serves, in the model's dtype.

    Leaves `model`, a copy, in float64.
    """
    like = next(ours.parameters())
    generator = torch.Generator(like.device).manual_seed(0)
    shape = (2, ours.config.in_chans, *_SIZE)
    x = torch.randn(shape, generator=generator, device=like.device).to(like.dtype)
    plain = _outputs(model, x)[1]
    maps, truth = _outputs(model.double(), x.double())
    own = copy.deepcopy(ours).double()
    _check_same("the features", own.features(x.double()), maps)
    _check_same("the outputs", own.forward_head(maps), truth)
    found = difference(ours(x), plain, truth, _FACTOR, max(_FLOOR, 8 * torch.finfo(like.dtype).eps))
    if not found.agrees:
        raise AccelerationError(f"the engine errs by {found}")


def _outputs(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Last map and output of a model. Raises UnknownModuleError where they can't be compared."""
    try:
        maps, output = last_map(model, x), model(x)
    except Exception as error:  # whatever users' modules may raise
        raise UnknownModuleError(f"the model doesn't compute in {x.dtype}: {error}") from error
    if not isinstance(output, Tensor) or not output.is_floating_point():
        got = str(output.dtype) if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise UnknownModuleError(f"the classifier puts out {got}, needs a tensor of floating point")
    return maps, output


def _check_same(what: str, got: Tensor, truth: Tensor) -> None:
    if got.shape != truth.shape:
        raise AccelerationError(f"{what} are {list(got.shape)}, the model's {list(truth.shape)}")
    error, largest = (got - truth).abs().max().item(), truth.abs().max().item()
    if not error <= _EXACTLY * largest:
        raise AccelerationError(f"{what} differ by {error:.3g} in float64, where the largest is {largest:.3g}")
