"""`large` and `small`: from arguments and weights to a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

from torch import Tensor

from mbv3fast.config import (
    SOURCES,
    WIDTH_RULES,
    NetworkConfig,
    has_reduced_tail,
    network,
    squeeze_width,
    with_overrides,
)
from mbv3fast.description import Description
from mbv3fast.fast import FusedFeatureExtractor, FusedMobileNetV3, build
from mbv3fast.preprocess import Preprocess
from mbv3fast.pyramid import with_output_stride
from mbv3fast.serving import logger
from mbv3fast.tables import Variant
from mbv3fast.weights import Checkpoint, WeightsError, read

if TYPE_CHECKING:
    from typing_extensions import Unpack

_DOC = """MobileNetV3-{Variant} (Howard et al. 2019, table {table}), {size} at 1000 classes, as a `torch.nn.Module`.

    Input [N, in_chans, H, W], N >= 1, H and W >= 32, float32, float16 or bfloat16; output [N, num_classes].
    In eval under `torch.inference_mode()` the batch norms are folded and the network runs fused.

    weights: a state dict (ours, torchvision's, timm's, the seed's), a .safetensors or .pth path, "DEFAULT" or
        another published name, a member of torchvision's weights enums, "hf-hub:timm/…", or "digits", the small
        checkpoint that the package carries. The architecture follows from it.
    source: "seed", "torchvision", "timm" or "timm-tf". With `weights`, whose they are where keys and shapes leave
        a doubt; without, whose architecture to build (the seed's).
    num_classes: outputs, 1000 by default; 0 gives the embedding. Other than the checkpoint's: a fresh last layer.
    in_chans: channels of the input, 3 by default. Other than the checkpoint's: its stem is summed or tiled to fit.
    width_mult: multiplies the channel widths, rounded as `source` does it.
    dropout, bn_eps, bn_momentum: 0.2, by source (1e-5 for the seed), 0.01.
    se_divisor: 1, squeeze-excite widths of exactly C // 4 (the seed's), or 8, rounded (torchvision's and timm's).
    tf_same_padding: TensorFlow's 'same' padding at stride 2.
    minimal: no squeeze-excite, no hardswish, no 5x5 kernels (timm's `minimal` models).
    reduced_tail: half the channels behind stride 16, as torchvision's option of that name.
    output_stride: 32, or 16 or 8, where later strides become dilations: from the convolution that had the stride on, as
        torchvision's segmentation networks do it, or with timm's weights or `source` from the next one on, as timm's
        `output_stride` does.
    backend: "auto", "cuda", "triton" or "torch"; an explicit one that can't serve raises BackendError.
    plan: "layers" asks for Triton's plan outright, "blocks" for CUDA's, "network" for the whole network in one CUDA
        launch; None leaves the choice to the backend.
    cuda_graphs: whether a GPU replays captured launches; without, each forward launches them anew.
    micro_batch: images that a GPU runs at once; None for as many as keep activations within 512 MB.
    features_only: a module that returns feature maps of strides 2 to 32, those of `out_indices`.

    Raises WeightsError (a ValueError) for weights that can't be read or fitted, ValueError for other arguments.
    """


def _factory(variant: Variant, **named: Any) -> FusedMobileNetV3 | FusedFeatureExtractor:
    weights, num_classes, in_chans = (named.pop(key) for key in ("weights", "num_classes", "in_chans"))
    shape = {key: named.pop(key) for key in ("width_mult", "se_divisor", "minimal", "reduced_tail")}
    settings = {key: named.pop(key) for key in ("dropout", "bn_eps", "bn_momentum", "tf_same_padding")}
    source, output_stride = named.pop("source"), named.pop("output_stride")
    if weights is None:
        config = _fresh_config(variant, source, shape, settings)
        config = with_overrides(config, num_classes=num_classes, in_chans=in_chans)
        return build(_strided(config, output_stride, source), **named)
    said = {key: settings[key] for key in ("bn_eps", "tf_same_padding")}
    checkpoint = read(weights, variant=variant, source=source, **said)
    _check_agreement(checkpoint.config, variant, shape)
    checkpoint = _with_channels(checkpoint, in_chans)
    config = _strided(with_overrides(checkpoint.config, **settings), output_stride, source or checkpoint.kind)
    wanted = with_overrides(config, num_classes=num_classes).num_classes
    model = _filled(checkpoint, config, **named)
    if wanted != config.num_classes and isinstance(model, FusedMobileNetV3):
        if wanted:
            logger.info("weights are for %d classes, %d wanted: the last layer is fresh", config.num_classes, wanted)
        model.reset_classifier(wanted)
    return model


def _strided(config: NetworkConfig, output_stride: int | None, source: str | None) -> NetworkConfig:
    """`config` at an output stride, by the convention of those whose weights or architecture it is."""
    return with_output_stride(config, output_stride, from_stride=source not in ("timm", "timm-tf"))


def _filled(checkpoint: Checkpoint, config: NetworkConfig, **named: Any) -> FusedMobileNetV3 | FusedFeatureExtractor:
    """A model of `config` with the checkpoint's tensors, of which a feature extractor needs only some."""
    model = build(config, checkpoint.description.preprocess, **named)
    model.load_state_dict({key: checkpoint.state[key] for key in model.state_dict()})
    if isinstance(model, FusedMobileNetV3):
        model.labels = checkpoint.description.labels
    return model


def load(
    weights: Any,
    *,
    variant: Variant = "large",
    source: str | None = None,
    backend: str = "auto",
    plan: str | None = None,
) -> FusedMobileNetV3:
    """The model that `weights` belong to, Large or Small as they are; arguments and errors are those of `large`.

    variant: "large" or "small", whose published weights a name such as "DEFAULT" means.
    """
    checkpoint = read(weights, variant=variant, source=source)
    model = _filled(checkpoint, checkpoint.config, backend=backend, plan=plan)
    assert isinstance(model, FusedMobileNetV3)
    return model


def _fresh_config(
    variant: Variant, source: str | None, shape: dict[str, Any], settings: dict[str, Any]
) -> NetworkConfig:
    if source is not None and source not in SOURCES:
        raise ValueError(f"source: got {source!r}, needs one of {', '.join(SOURCES)}")
    # se_divisor alone names the peers' network too: eps is then torchvision's.
    traits = SOURCES[source or ("torchvision" if shape["se_divisor"] == 8 else "seed")]
    config = network(
        variant,
        width_mult=1.0 if shape["width_mult"] is None else shape["width_mult"],
        width_rule=traits.width_rule,
        se_divisor=traits.se_divisor if shape["se_divisor"] is None else shape["se_divisor"],
        minimal=bool(shape["minimal"]),
        reduced_tail=bool(shape["reduced_tail"]),
        bn_eps=traits.bn_eps,
        tf_same_padding=traits.tf_same_padding,
    )
    return with_overrides(config, **settings)


def _check_agreement(config: NetworkConfig, variant: Variant, shape: dict[str, Any]) -> None:
    """The checkpoint decides the architecture; an argument that says otherwise is an error, not a wish."""
    if config.variant != variant:
        raise WeightsError(
            f"weights: these belong to mbv3fast.{config.variant}(), not to {variant}(); mbv3fast.load takes both"
        )
    divisor = shape["se_divisor"]
    for block in config.blocks:
        if divisor and block.squeeze and block.squeeze != squeeze_width(block.expanded, divisor):
            raise WeightsError(f"se_divisor: got {divisor}, but the weights have {block.squeeze} of {block.expanded}")
    reduced = has_reduced_tail(config)
    if shape["width_mult"] is not None:
        widths = {"width_mult": shape["width_mult"], "reduced_tail": reduced}
        wanted = {
            tuple(b.out_channels for b in network(variant, width_rule=rule, **widths).blocks) for rule in WIDTH_RULES
        }
        got = tuple(block.out_channels for block in config.blocks)
        if got not in wanted:
            raise WeightsError(f"width_mult: got {shape['width_mult']}, but the weights have block outputs {got}")
    if shape["minimal"] is not None and shape["minimal"] == any(block.squeeze for block in config.blocks):
        raise WeightsError(f"minimal: got {shape['minimal']}, but the weights say otherwise")
    if shape["reduced_tail"] not in (None, reduced):
        raise WeightsError(f"reduced_tail: got {shape['reduced_tail']}, but the weights say otherwise")


def _with_channels(checkpoint: Checkpoint, in_chans: int | None) -> Checkpoint:
    """The checkpoint for another number of input channels, its stem summed or tiled, if asked for."""
    config = with_overrides(checkpoint.config, in_chans=in_chans)
    if config.in_chans == checkpoint.config.in_chans:
        return checkpoint
    stem = {"features.0.0.weight": _adapt_stem(checkpoint.state["features.0.0.weight"], config.in_chans)}
    described = Description(config, Preprocess.default(config.in_chans), checkpoint.description.labels)
    return Checkpoint({**checkpoint.state, **stem}, described)


def _adapt_stem(weight: Tensor, in_chans: int) -> Tensor:
    """Sum the channels for one, else tile them and keep the response to an equal input, as timm does."""
    if in_chans == 1:
        return weight.sum(dim=1, keepdim=True)
    channels = weight.shape[1]
    tiled = weight.repeat(1, -(-in_chans // channels), 1, 1)[:, :in_chans]
    return tiled * (channels / in_chans)


class Options(TypedDict, total=False):
    """The arguments that classifiers and feature extractors share."""

    source: str | None
    num_classes: int | None
    in_chans: int | None
    width_mult: float | None
    dropout: float | None
    bn_eps: float | None
    bn_momentum: float | None
    se_divisor: int | None
    tf_same_padding: bool | None
    minimal: bool | None
    reduced_tail: bool | None
    output_stride: int | None
    backend: str
    plan: str | None
    cuda_graphs: bool
    micro_batch: int | None


@overload
def large(weights: Any = ..., *, features_only: Literal[False] = ..., **rest: Unpack[Options]) -> FusedMobileNetV3: ...
@overload
def large(
    weights: Any = ...,
    *,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = ...,
    **rest: Unpack[Options],
) -> FusedFeatureExtractor: ...
def large(
    weights: Any = None,
    *,
    source: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    width_mult: float | None = None,
    dropout: float | None = None,
    bn_eps: float | None = None,
    bn_momentum: float | None = None,
    se_divisor: int | None = None,
    tf_same_padding: bool | None = None,
    minimal: bool | None = None,
    reduced_tail: bool | None = None,
    output_stride: int | None = None,
    backend: str = "auto",
    plan: str | None = None,
    cuda_graphs: bool = True,
    micro_batch: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
) -> FusedMobileNetV3 | FusedFeatureExtractor:
    return _factory("large", **locals())


@overload
def small(weights: Any = ..., *, features_only: Literal[False] = ..., **rest: Unpack[Options]) -> FusedMobileNetV3: ...
@overload
def small(
    weights: Any = ...,
    *,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = ...,
    **rest: Unpack[Options],
) -> FusedFeatureExtractor: ...
def small(
    weights: Any = None,
    *,
    source: str | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    width_mult: float | None = None,
    dropout: float | None = None,
    bn_eps: float | None = None,
    bn_momentum: float | None = None,
    se_divisor: int | None = None,
    tf_same_padding: bool | None = None,
    minimal: bool | None = None,
    reduced_tail: bool | None = None,
    output_stride: int | None = None,
    backend: str = "auto",
    plan: str | None = None,
    cuda_graphs: bool = True,
    micro_batch: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
) -> FusedMobileNetV3 | FusedFeatureExtractor:
    return _factory("small", **locals())


large.__doc__ = _DOC.format(Variant="Large", table=1, size="5.48 M parameters")
small.__doc__ = _DOC.format(Variant="Small", table=2, size="2.54 M parameters")
