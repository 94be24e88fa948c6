"""What the network's kernel computes, read from the steps of a plan of CUDA's blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mbv3fast.cluster.chunks import in_eights
from mbv3fast.cuda.launch import ACTIVATIONS
from mbv3fast.fold import UnsupportedError
from mbv3fast.ops.spec import ConvShape, conv_shape
from mbv3fast.plan import INPUT, Plan, Step

STEM_CHANNELS = 4  # of an image, at most
_BLOCKS = ("inverted_residual", "depthwise_project", "depthwise_excite_project")


class UncutError(UnsupportedError):
    """A network, or a size of images, that a cluster can't compute; the message names the part and why."""


@dataclass(frozen=True)
class Part:
    """A step that is one stage of the kernel: its tensors and options by the names of its op."""

    name: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    options: Mapping[str, Any]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def matrix(self, name: str) -> Tensor:
        """The weight of a 1x1 convolution or of a linear layer, [C', C]."""
        return self.tensors[name].flatten(1)

    @property
    def kernel(self) -> int:
        return self.tensors["weight"].shape[-1]

    @property
    def stride(self) -> int:
        return int(self.options["stride"])

    def activation(self, name: str = "activation") -> int:
        """As mbv3fast.h numbers them."""
        return ACTIVATIONS[self.options.get(name)]

    def shape(self, size: tuple[int, int]) -> ConvShape:
        """Of the output for an input of height and width `size`."""
        return conv_shape(size, self.kernel, self.stride, self.options["padding"])


@dataclass(frozen=True)
class Block(Part):
    """An inverted residual."""

    adds_input: bool

    @property
    def channels(self) -> int:
        """Of the windows, expanded or not."""
        return len(self.tensors["weight"])

    @property
    def outputs(self) -> int:
        return len(self.tensors["project_weight"])

    @property
    def squeezed(self) -> int:
        """Hidden units of squeeze-excite, in eights; 0 where there is none."""
        return in_eights(len(self.tensors["fc1_bias"])) if "fc1_bias" in self.tensors else 0


@dataclass(frozen=True)
class Parts:
    """A network: `last` is its last convolution, whose tensors have no prefix, with the first linear layer's."""

    stem: Part
    blocks: tuple[Block, ...]
    last: Part
    linears: tuple[Part, ...]


def read_parts(plan: Plan) -> Parts:
    """Raises UncutError, which names the first step that the kernel has no stage for."""
    stem, *middle = plan.steps
    if stem.op != "stem_conv" or stem.options["stride"] != 2 or stem.tensors["weight"].shape[-1] != 3:
        raise UncutError(f"{stem.name} is no 3x3 convolution at stride 2")
    if len(stem.tensors["weight"]) % 8:
        raise UncutError(f"{stem.name} has {len(stem.tensors['weight'])} channels, needs a multiple of 8")
    if stem.tensors["weight"].shape[1] > STEM_CHANNELS:
        raise UncutError(f"{stem.name} has {stem.tensors['weight'].shape[1]} input channels, needs up to 4")
    count = next((i for i, step in enumerate(middle) if step.op not in _BLOCKS), len(middle))
    blocks, ends = middle[:count], middle[count:]
    ops = [step.op for step in ends]
    if not blocks or ops[:1] != ["pointwise_mean_linear"] or set(ops[1:]) > {"linear"}:
        where = ends[0].name if ends else "the network"
        raise UncutError(f"{where}: a cluster computes a stem, blocks, one last convolution and linear layers")
    _check_chain(plan)
    parts = Parts(_part(stem), tuple(map(_block, blocks)), _part(ends[0]), tuple(map(_part, ends[1:])))
    for step in plan.steps:
        _check_activations(step)
    return parts


def stage_names(plan: Plan) -> list[str]:
    """Of the kernel's stages, in order: those of the steps, of which one is two stages."""
    names = [step.name for step in plan.steps]
    names.insert([step.op for step in plan.steps].index("pointwise_mean_linear"), "last convolution")
    return names


def _part(step: Step) -> Part:
    return Part(step.name, step.tensors, step.options)


def _block(step: Step) -> Block:
    block = Block(step.name, step.tensors, step.options, adds_input="residual" in step.inputs)
    if step.options.get("dilation", 1) != 1:
        raise UncutError(f"{step.name} has a dilation")
    if block.kernel not in (3, 5) or block.stride not in (1, 2):
        raise UncutError(f"{step.name} has windows of {block.kernel} at stride {block.stride}, needs 3 or 5 at 1 or 2")
    for name in ("weight", "project_weight"):
        if len(block[name]) % 8:
            raise UncutError(f"{step.name} has {len(block[name])} channels, needs a multiple of 8")
    return block


def _check_chain(plan: Plan) -> None:
    """That each step takes what the one before it makes, and nothing else."""
    before = INPUT
    for step in plan.steps:
        if set(step.inputs.values()) != {before}:
            raise UncutError(f"{step.name} takes {', '.join(step.inputs.values())}, needs {before} alone")
        before = step.name
    if plan.outputs != (before,):
        raise UncutError("a cluster puts out the last layer's numbers alone")


def _check_activations(step: Step) -> None:
    for name, value in step.options.items():
        if name.endswith("activation") and value not in ACTIVATIONS:
            raise UncutError(f"{step.name} has {value}, needs relu, hardswish or none")
    if step.options.get("gate", "hardsigmoid") != "hardsigmoid":
        raise UncutError(f"{step.name} has {step.options['gate']}, needs hardsigmoid")


def sizes(parts: Parts, size: tuple[int, int]) -> Sequence[ConvShape]:
    """Of the stem's output and of each block's."""
    found = [parts.stem.shape(size)]
    for block in parts.blocks:
        found.append(block.shape((found[-1].height, found[-1].width)))
    return found
