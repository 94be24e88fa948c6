"""Parameter names of the projects whose weights we read, each beside ours (which are torchvision's)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mbv3fast.tables import STAGES, Variant

Kind = Literal["torchvision", "timm", "seed"]

OPTIONAL_TENSOR = "num_batches_tracked"  # older checkpoints don't count batches
BN_TENSORS = ("weight", "bias", "running_mean", "running_var", OPTIONAL_TENSOR)


@dataclass(frozen=True)
class Layout:
    """Which parts a checkpoint has; with a Kind it determines every name."""

    variant: Variant
    stages: tuple[int, ...]  # blocks in each stage
    squeeze_excite: tuple[bool, ...]  # for each block
    last_convs: int = 1
    head_bias: bool = True
    classifier: bool = True

    @property
    def standard(self) -> bool:
        """Whether the depth is the paper's."""
        return self.stages == STAGES[self.variant]


def pairs(layout: Layout, kind: Kind) -> list[tuple[str, str]]:
    """(our name, their name) of every tensor, in the order of the network."""
    names = _conv_bn("features.0.0", "features.0.1", *_STEM[kind])
    index = 0
    for stage, count in enumerate(layout.stages):
        for position in range(count):
            names += _block(layout, kind, index, stage, position)
            index += 1
    for position in range(layout.last_convs):
        ours = f"features.{index + 1 + position}"
        theirs = {
            "torchvision": (f"{ours}.0", f"{ours}.1"),
            "timm": (f"blocks.{len(layout.stages)}.{position}.conv", f"blocks.{len(layout.stages)}.{position}.bn1"),
            "seed": ("last_conv.0", "last_conv.1"),
        }[kind]
        names += _conv_bn(f"{ours}.0", f"{ours}.1", *theirs)
    head, last = _HEAD[kind]
    names += _affine("classifier.0", head, bias=layout.head_bias)
    return names + (_affine("classifier.3", last) if layout.classifier else [])


_STEM: dict[Kind, tuple[str, str]] = {
    "torchvision": ("features.0.0", "features.0.1"),
    "timm": ("conv_stem", "bn1"),
    "seed": ("first_conv.0", "first_conv.1"),
}
_HEAD: dict[Kind, tuple[str, str]] = {
    "torchvision": ("classifier.0", "classifier.3"),
    "timm": ("conv_head", "classifier"),
    "seed": ("fc1.0", "fc2.1"),
}


def _block(layout: Layout, kind: Kind, index: int, stage: int, position: int) -> list[tuple[str, str]]:
    roles = ["expand"] if stage > 0 else []  # stage 0 works on the stem's own channels
    roles += ["depthwise"] + (["squeeze_excite"] if layout.squeeze_excite[index] else []) + ["project"]
    names: list[tuple[str, str]] = []
    for slot, role in enumerate(roles):
        ours = f"features.{index + 1}.block.{slot}"
        seed = f"bottlenecks.{index}.residual.{slot}"
        timm = f"blocks.{stage}.{position}"
        if role == "squeeze_excite":
            fc1, fc2 = {
                "torchvision": (f"{ours}.fc1", f"{ours}.fc2"),
                "timm": (f"{timm}.se.conv_reduce", f"{timm}.se.conv_expand"),
                "seed": (f"{seed}.excitation.0", f"{seed}.excitation.2"),
            }[kind]
            names += _affine(f"{ours}.fc1", fc1) + _affine(f"{ours}.fc2", fc2)
        else:
            conv, norm = {
                "torchvision": (f"{ours}.0", f"{ours}.1"),
                "timm": tuple(f"{timm}.{name}" for name in _timm_part(role, stage > 0)),
                "seed": (f"{seed}.0", f"{seed}.1"),
            }[kind]
            names += _conv_bn(f"{ours}.0", f"{ours}.1", conv, norm)
    return names


def _timm_part(role: str, has_expand: bool) -> tuple[str, str]:
    """timm numbers batch norms by position and calls the projection conv_pw where nothing expands."""
    if has_expand:
        return {"expand": ("conv_pw", "bn1"), "depthwise": ("conv_dw", "bn2"), "project": ("conv_pwl", "bn3")}[role]
    return {"depthwise": ("conv_dw", "bn1"), "project": ("conv_pw", "bn2")}[role]


def _conv_bn(our_conv: str, our_norm: str, their_conv: str, their_norm: str) -> list[tuple[str, str]]:
    norms = [(f"{our_norm}.{tensor}", f"{their_norm}.{tensor}") for tensor in BN_TENSORS]
    return [(f"{our_conv}.weight", f"{their_conv}.weight"), *norms]


def _affine(ours: str, theirs: str, bias: bool = True) -> list[tuple[str, str]]:
    weight = [(f"{ours}.weight", f"{theirs}.weight")]
    return weight + ([(f"{ours}.bias", f"{theirs}.bias")] if bias else [])
