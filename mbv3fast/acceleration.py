"""`accelerate`: the fused equivalent of a torchvision or timm MobileNetV3 that one already has."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from mbv3fast.agreement import difference
from mbv3fast.fast import FusedMobileNetV3, build
from mbv3fast.foreign import UnknownModuleError, fill, network_config, read_network
from mbv3fast.model import MobileNetV3
from mbv3fast.preprocess import Preprocess

_SIZE = (97, 129)  # of the images that are compared: odd, so that paddings show
_EXACTLY = 1e-10  # of the largest value, between two computations in float64
_FLOOR = 1e-4  # of the largest output, where kernels round in float32
_FACTOR = 4  # of the model's own error, since it and ours round differently


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
    has been compared with `model` on a random batch, in float64 and then as it is served. What only training does
    differently (timm's drop path) is not taken over.

    preprocess: how bytes are normalised and `transforms()` prepares images; None for what timm's `pretrained_cfg`
        says, ImageNet's where there is none.
    backend, plan, cuda_graphs, micro_batch: as of `mbv3fast.large`.

    Raises ValueError for arguments that don't fit; UnknownModuleError (a ValueError), which names the module, for what
    has no equivalent: hooks, parametrizations, replaced methods, other layers; AccelerationError where the results
    differ.
    """
    network = read_network(model)
    config = network_config(network)
    if preprocess is not None and len(preprocess.mean) != config.in_chans:
        raise ValueError(f"preprocess: got mean and std of {len(preprocess.mean)}, needs {config.in_chans} channels")
    settings = {"backend": backend, "plan": plan, "cuda_graphs": cuda_graphs, "micro_batch": micro_batch}
    with torch.device("meta"):  # fresh weights would take time, and random numbers from the user's generator
        ours = build(config, preprocess or network.preprocess, **settings)  # type: ignore[arg-type] # each of its kind
    assert isinstance(ours, FusedMobileNetV3)
    ours.train(model.training)
    fill(ours, network)
    modes = {module: module.training for module in ours.modules()}
    with torch.device(network.stem.conv.weight.device):
        _compare(model, ours.eval())
    for module, training in modes.items():
        module.training = training
    return ours


def _compare(model: nn.Module, ours: FusedMobileNetV3) -> None:
    """The modules in float64, in which a mistake can't hide behind rounding; what serves, in the model's dtype."""
    like = next(ours.parameters())
    generator = torch.Generator(like.device).manual_seed(0)
    shape = (2, ours.config.in_chans, *_SIZE)
    x = torch.randn(shape, generator=generator, device=like.device).to(like.dtype)
    plain = copy.deepcopy(model).eval()
    truth = _compare_exactly(copy.deepcopy(plain).double(), copy.deepcopy(ours).double(), x.double())
    found = difference(ours(x), plain(x), truth, _FACTOR, max(_FLOOR, 8 * torch.finfo(like.dtype).eps))
    if not found.agrees:
        raise AccelerationError(f"the engine errs by {found}")


def _compare_exactly(model: nn.Module, ours: MobileNetV3, x: Tensor) -> Tensor:
    """Last maps and outputs of both in float64; the model's outputs."""
    maps = read_network(model).features(x)
    _same("the features", ours.features(x), maps)
    try:
        truth = model(x)
    except Exception as error:  # whatever users' modules may raise
        raise UnknownModuleError(f"the classifier doesn't compute in float64: {error}") from error
    if not isinstance(truth, Tensor) or not truth.is_floating_point():
        raise UnknownModuleError(f"the classifier puts out {_kind(truth)}, needs a tensor of floating point")
    _same("the outputs", ours.forward_head(maps), truth)
    return truth


def _kind(output: object) -> str:
    return str(output.dtype) if isinstance(output, Tensor) else f"a {type(output).__name__}"


def _same(what: str, got: Tensor, truth: Tensor) -> None:
    if got.shape != truth.shape:
        raise AccelerationError(f"{what} are {list(got.shape)}, the model's {list(truth.shape)}")
    error, largest = (got - truth).abs().max().item(), truth.abs().max().item()
    if not error <= _EXACTLY * largest:
        raise AccelerationError(f"{what} differ by {error:.3g} in float64, where the largest is {largest:.3g}")
