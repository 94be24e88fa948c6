"""`accelerate`: the fused equivalent of a torchvision or timm MobileNetV3 that one already has."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import torch
from torch import Tensor, nn

from mbv3fast.agreement import difference
from mbv3fast.config import BlockConfig, NetworkConfig
from mbv3fast.fast import FusedMobileNetV3, build
from mbv3fast.foreign import ForeignBlock, ForeignConv, ForeignNetwork, UnknownModuleError, is_linear, read_network
from mbv3fast.layers import Conv2dSame, ConvBNAct, InvertedResidual, SqueezeExcite, activation_module
from mbv3fast.tables import ACTIVATIONS, Activation

_LARGE = 13  # blocks from which a network is told to be a Large; it only names it
_SIZE = (97, 129)  # of the images that are compared: odd, so that paddings show
_FLOOR = 1e-4  # of the largest output: what no mistake stays below
_FACTOR = 4  # of the model's own error, since it and ours round differently


class AccelerationError(ValueError):
    """The fused equivalent computes something else than the model it was made of."""


def accelerate(
    model: nn.Module,
    *,
    backend: str = "auto",
    plan: str | None = None,
    cuda_graphs: bool = True,
    micro_batch: int | None = None,
) -> FusedMobileNetV3:
    """The fused equivalent of a MobileNetV3 of torchvision or timm, on its device, in its dtype and mode.

    Everything is read from the modules as they stand: widths, strides, dilations, paddings, eps, activations, the
    residuals, and the classifier, whatever takes its place. The result is a copy, with torchvision's module names, that
    has been compared with `model` on a random batch. What only training does differently (timm's drop path) is not
    taken over. backend, plan, cuda_graphs, micro_batch: as of `mbv3fast.large`.

    Raises UnknownModuleError (a ValueError), which names the module, for what has no equivalent: hooks,
    parametrizations, replaced methods, other layers; AccelerationError where the results differ.
    """
    network = read_network(model)
    like = network.stem.conv.weight
    if like.is_meta:
        raise UnknownModuleError(f"{network.stem.name}.weight is on meta, it has no data")
    ours = build(_config(network), backend=backend, plan=plan, cuda_graphs=cuda_graphs, micro_batch=micro_batch)
    assert isinstance(ours, FusedMobileNetV3)
    ours.train(model.training)
    _fill(ours, network)
    ours.to(like.device, like.dtype)
    modes = {module: module.training for module in ours.modules()}
    _compare(model, ours.eval())
    for module, training in modes.items():
        module.training = training
    return ours


def _config(network: ForeignNetwork) -> NetworkConfig:
    stem, head = network.stem, network.head
    last = network.classifier
    lasts = tuple(conv.conv.out_channels for conv in network.last_convs)
    return NetworkConfig(
        variant="large" if len(network.blocks) >= _LARGE else "small",
        stem=stem.conv.out_channels,
        blocks=_staged(tuple(map(_block_config, network.blocks))),
        last_convs=lasts,
        hidden=lasts[-1] if head is None else head.weight.shape[0],
        num_classes=last.out_features if is_linear(last) else 0,
        in_chans=stem.conv.in_channels,
        activation=_known(stem.activation, stem.name),
        head_bias=head is None or head.bias is not None,
        bn_eps=stem.norm.eps,
        bn_momentum=stem.norm.momentum if stem.norm.momentum is not None else 0.1,
        tf_same_padding=stem.same,
        dropout=network.dropout,
    )


def _staged(blocks: tuple[BlockConfig, ...]) -> tuple[BlockConfig, ...]:
    """With the strides that gave way to dilations: where these begin."""
    found = list(blocks)
    for index, (before, block) in enumerate(itertools.pairwise(blocks), start=1):
        if block.dilation == 2 * before.dilation and block.stride == 1:
            found[index] = replace(block, replaced_stride=2)
    return tuple(found)


def _known(activation: str | None, name: str) -> Activation:
    if activation not in ACTIVATIONS:
        raise UnknownModuleError(f"{name} has no activation")
    return activation


def _block_config(block: ForeignBlock) -> BlockConfig:
    depthwise, excite = block.depthwise.conv, block.squeeze_excite
    first = depthwise if block.expand is None else block.expand.conv
    try:
        config = BlockConfig(
            in_channels=first.in_channels,
            kernel=depthwise.kernel_size[0],
            expanded=depthwise.out_channels,
            out_channels=block.project.conv.out_channels,
            squeeze=0 if excite is None else excite.fc1.out_channels,
            activation=_known(block.depthwise.activation, block.depthwise.name),
            stride=depthwise.stride[0],
            skip=block.residual or depthwise.stride[0] > 1 or first.in_channels != block.project.conv.out_channels,
            squeeze_activation="relu" if excite is None else _known(excite.activation, excite.name),
            dilation=depthwise.dilation[0],
        )
    except UnknownModuleError:
        raise
    except ValueError as error:
        raise UnknownModuleError(f"{block.name}: {error}") from error
    if config.has_expand != (block.expand is not None) or config.has_residual != block.residual:
        raise UnknownModuleError(f"{block.name} expands to as many channels as it has, or adds what doesn't fit")
    if block.project.activation is not None:
        raise UnknownModuleError(f"{block.project.name} has an activation behind it, needs none")
    return config


def _fill(ours: FusedMobileNetV3, network: ForeignNetwork) -> None:
    """Copies of all modules that compute, in the places of ours."""
    layers: list[ForeignConv | ForeignBlock] = [network.stem, *network.blocks, *network.last_convs]
    for own, layer in zip(ours.features, layers, strict=True):
        if isinstance(layer, ForeignConv):
            _fill_conv(own, layer)
        else:
            _fill_block(own, layer)
    head, classifier = network.head, network.classifier
    if head is None:
        ours.classifier = copy.deepcopy(classifier)  # type: ignore[assignment] # users may put anything there
        return
    if isinstance(head, nn.Conv2d) and (head.kernel_size != (1, 1) or head.groups != 1 or head.padding != (0, 0)):
        raise UnknownModuleError("conv_head is no plain 1x1 convolution")
    _take(ours.classifier[0], head)
    ours.classifier[1] = activation_module(_known(network.head_activation, "the head"))
    ours.classifier[3] = _plain_linear(classifier) if is_linear(classifier) else copy.deepcopy(classifier)


def _plain_linear(linear: nn.Linear) -> nn.Linear:
    plain = nn.Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, dtype=linear.weight.dtype)
    _take(plain, linear)
    return plain.to(linear.weight.device)


def _take(target: nn.Module, source: nn.Module) -> None:
    """The tensors of a layer, a 1x1 convolution's for a linear one too, and its mode; what is frozen stays so."""
    own = dict(target.named_parameters())
    tensors = {name: tensor for name, tensor in source.state_dict().items() if "." not in name}
    target.load_state_dict({name: t.reshape(own[name].shape) if name in own else t for name, t in tensors.items()})
    for name, parameter in own.items():
        parameter.requires_grad_(getattr(source, name).requires_grad)
    target.training = source.training


def _fill_block(own: nn.Module, block: ForeignBlock) -> None:
    assert isinstance(own, InvertedResidual)
    for part, conv in ((own.expand, block.expand), (own.depthwise, block.depthwise), (own.project, block.project)):
        if conv is not None and part is not None:
            _fill_conv(part, conv)
    if block.squeeze_excite is not None:
        excite = own.squeeze_excite
        assert isinstance(excite, SqueezeExcite)
        for target, source in ((excite.fc1, block.squeeze_excite.fc1), (excite.fc2, block.squeeze_excite.fc2)):
            if source.kernel_size != (1, 1) or source.groups != 1 or source.bias is None or source.padding != (0, 0):
                raise UnknownModuleError(f"{block.squeeze_excite.name} has no plain 1x1 convolutions with biases")
            _take(target, source)


def _fill_conv(own: nn.Module, foreign: ForeignConv) -> None:
    assert isinstance(own, ConvBNAct)
    conv, norm = foreign.conv, foreign.norm
    own[0] = (Conv2dSame if foreign.same else nn.Conv2d)(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type] # of two numbers
        stride=conv.stride,  # type: ignore[arg-type]
        padding=conv.padding,  # type: ignore[arg-type]
        dilation=conv.dilation,  # type: ignore[arg-type]
        groups=conv.groups,
        bias=conv.bias is not None,
        padding_mode=conv.padding_mode,
    )
    own[1] = nn.BatchNorm2d(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    _take(own[0], conv)
    _take(own[1], norm)
    if foreign.activation is not None:
        own[2] = activation_module(_known(foreign.activation, foreign.name))


@torch.no_grad()
def _compare(model: nn.Module, ours: FusedMobileNetV3) -> None:
    """Both against the model in float64, of which ours may be no farther than a few times the model itself."""
    like = next(ours.parameters())
    generator = torch.Generator(like.device).manual_seed(0)
    shape = (2, ours.config.in_chans, *_SIZE)
    x = torch.randn(shape, generator=generator, device=like.device).to(like.dtype)
    exact = copy.deepcopy(model).eval()
    plain = exact(x)
    if not isinstance(plain, Tensor):
        raise UnknownModuleError(f"the classifier puts out a {type(plain).__name__}, needs a tensor")
    truth = exact.double()(x.double())
    floor = max(_FLOOR, 8 * torch.finfo(like.dtype).eps)
    for what, got in (("the modules", ours.reference_forward(x)), ("the engine", ours(x))):
        if got.shape != truth.shape:
            raise AccelerationError(f"{what} put out {list(got.shape)}, the model {list(truth.shape)}")
        found = difference(got, plain, truth, _FACTOR, floor)
        if not found.agrees:
            raise AccelerationError(f"{what} err by {found}")
