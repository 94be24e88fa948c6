"""`lraspp_large`: from arguments and weights to a segmentation model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mbv3fast.config import SOURCES, NetworkConfig, has_reduced_tail, network
from mbv3fast.factory import large
from mbv3fast.fast import FusedLRASPP, served
from mbv3fast.pyramid import dilated, with_output_stride
from mbv3fast.serving import logger
from mbv3fast.weights import WeightsError
from mbv3fast.weights.published import SEGMENTATION
from mbv3fast.weights.segmentation import read_lraspp

_OUTPUT_STRIDE = 16
_CLASSES = 21  # of Pascal VOC, the background among them


def lraspp_large(
    weights: Any = None,
    *,
    weights_backbone: Any = None,
    source: str | None = None,
    num_classes: int | None = None,
    output_stride: int | None = None,
    reduced_tail: bool | None = None,
    backend: str = "auto",
    plan: str | None = None,
    cuda_graphs: bool = True,
    micro_batch: int | None = None,
) -> FusedLRASPP:
    """LR-ASPP segmentation on MobileNetV3-Large (Howard et al. 2019, section 6.4), as torchvision builds it.

    Input [N, 3, H, W], N >= 1, H and W >= 32, float32, float16 or bfloat16, or bytes; output {"out": scores
    [N, num_classes, H, W]}. In eval under `torch.inference_mode()` the backbone runs fused; the head is PyTorch's.

    weights: a state dict (ours or torchvision's), a .pth or .safetensors path, "DEFAULT" or "COCO_WITH_VOC_LABELS_V1",
        or a member of torchvision's enum. weights_backbone: without these, a classifier's, all that `large` takes, and
        their `source`, where they leave a doubt.
    num_classes: 21 by default; other than the weights': fresh last layers.
    output_stride: of the last map, 32, 16 or 8; what comes behind is dilated. None is 16, or that of `weights` of ours.
    reduced_tail: half the channels there; weights must agree.
    backend, plan, cuda_graphs, micro_batch: as of `mbv3fast.large`.

    Raises WeightsError (a ValueError) for weights that can't be read or fitted, ValueError for other arguments.
    """
    if weights is not None and weights_backbone is not None:
        raise ValueError("weights_backbone: needs weights=None, since `weights` bring a backbone")
    settings: dict[str, Any] = {
        "backend": backend,
        "plan": plan,
        "cuda_graphs": cuda_graphs,
        "micro_batch": micro_batch,
    }
    if source is not None and weights_backbone is None:
        raise ValueError("source: is of weights_backbone=, which is None")
    if weights is not None:
        return _read(weights, num_classes, output_stride, reduced_tail, settings)
    config, preprocess, features = _config(output_stride, reduced_tail), SEGMENTATION, None
    if weights_backbone is not None:
        found = large(
            weights_backbone,
            source=source,
            features_only=True,
            output_stride=_OUTPUT_STRIDE if output_stride is None else output_stride,
            reduced_tail=reduced_tail,
        )
        config, features = found.config, found.features
        preprocess = replace(preprocess, mean=found.preprocess.mean, std=found.preprocess.std)
    model = FusedLRASPP(replace(config, num_classes=_CLASSES if num_classes is None else num_classes), preprocess)
    if features is not None:
        model.backbone.load_state_dict(features.state_dict())
    return served(model, **settings)


def _config(output_stride: int | None, reduced_tail: bool | None) -> NetworkConfig:
    """torchvision's, which its weights belong to."""
    traits = SOURCES["torchvision"]
    table = network("large", reduced_tail=bool(reduced_tail), se_divisor=traits.se_divisor, bn_eps=traits.bn_eps)
    stride = _OUTPUT_STRIDE if output_stride is None else output_stride
    return dilated(replace(table, num_classes=_CLASSES), stride, from_stride=True)


def _read(
    weights: Any,
    num_classes: int | None,
    output_stride: int | None,
    reduced_tail: bool | None,
    settings: dict[str, Any],
) -> FusedLRASPP:
    found = read_lraspp(weights, _config(output_stride, reduced_tail))
    config = found.description.config
    if reduced_tail not in (None, has_reduced_tail(config)):
        raise WeightsError(f"reduced_tail: got {reduced_tail}, but the weights say otherwise")
    config = with_output_stride(config, output_stride, from_stride=True)
    model = served(FusedLRASPP(config, found.description.preprocess), **settings)
    model.load_state_dict(found.state)
    model.labels = found.description.labels
    if num_classes is not None and num_classes != model.config.num_classes:
        logger.info(
            "weights are for %d classes, %d wanted: the last layers are fresh", model.config.num_classes, num_classes
        )
        model.reset_classifier(num_classes)
    return model
