"""Bytes moved and kernels launched by one call of an op: counted, not measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from mbv3fast.ops.op import Op, as_tuple, empty_input
from mbv3fast.ops.spec import conv_shape
from mbv3fast.ops.target import Target

if TYPE_CHECKING:
    from mbv3fast.launching import Launch

Shape = tuple[int, ...]


class Traffic(NamedTuple):
    """Bytes of activations read and written, kernels launched, bytes of the sums and scales that they pass on, and of
    what is allocated beside the outputs.
    """

    read: int
    written: int
    launches: int
    partial: int = 0
    scratch: int = 0


PARTIALS = ("pool", "hidden", "scale")  # as kernels name them: small float32 tensors of squeeze-excite and the mean


def kernel_traffic(
    op: Op,
    inputs: Mapping[str, Shape],
    tensors: Mapping[str, Tensor],
    options: Mapping[str, Any],
    dtype: torch.dtype,
    target: Target | None = None,
    names: Mapping[str, str] | None = None,
) -> Traffic:
    """Of our kernels, as passed to them, whose arguments `names` are: one that is another too is read as often as they
    do.
    """
    launches, outputs = dry_run(op, inputs, tensors, options, dtype, target, names)
    return traffic_of(launches, storages(tensors))._replace(scratch=_scratch(launches, outputs))


def dry_run(
    op: Op,
    inputs: Mapping[str, Shape],
    tensors: Mapping[str, Tensor],
    options: Mapping[str, Any],
    dtype: torch.dtype,
    target: Target | None = None,
    names: Mapping[str, str] | None = None,
) -> tuple[list[Launch], tuple[Tensor, ...]]:
    """The launches and outputs of a run on tensors without data: seen, not made. `target`: None is the H100.

    names: the value that each input is; inputs of one value are one tensor. None: each is a value of its own.
    """
    from mbv3fast.launching import watch_launches

    values: dict[Any, Tensor] = {}
    given = {}
    for name, shape in inputs.items():  # in the layout that the engine's have, of which no copy is made
        tensor = empty_input(op.spec, name, shape, dtype, torch.device("meta"))
        given[name] = values.setdefault((name if names is None else names[name], tensor.dtype), tensor)
    launches: list[Launch] = []
    with watch_launches(launches.append):
        outputs = as_tuple(op.run(**given, **tensors, **options, target=target))
    return launches, outputs


def storages(tensors: Mapping[str, Tensor]) -> set[StorageWeakRef]:
    """What tells whether a tensor that a launch is given is one of these."""
    return {StorageWeakRef(tensor.untyped_storage()) for tensor in tensors.values()}


def traffic_of(launches: Sequence[Launch], weights: set[StorageWeakRef]) -> Traffic:
    """Of launches as seen at the launcher; tensors in the storages of `weights` are not counted."""
    read = written = partial = 0
    for launch in launches:
        for tensors, is_read in ((launch.reads, True), (launch.writes, False)):
            for name, tensor in tensors.items():
                if StorageWeakRef(tensor.untyped_storage()) in weights:
                    continue
                size = tensor.numel() * tensor.itemsize
                partial += size * (name in PARTIALS)
                read += size * (name not in PARTIALS and is_read)
                written += size * (name not in PARTIALS and not is_read)
    return Traffic(read, written, len(launches), partial)


def _scratch(launches: Sequence[Launch], outputs: tuple[Tensor, ...]) -> int:
    """Bytes of the tensors that are written and not put out."""
    written = [tensor.untyped_storage() for launch in launches for tensor in launch.writes.values()]
    sizes = {StorageWeakRef(storage): storage.nbytes() for storage in written}
    put_out = {StorageWeakRef(output.untyped_storage()) for output in outputs}
    return sum(size for storage, size in sizes.items() if storage not in put_out)


def torch_traffic(
    op: str,
    inputs: Mapping[str, Shape],
    tensors: Mapping[str, Tensor],
    options: Mapping[str, Any],
    output: Shape,
    itemsize: int,
) -> Traffic:
    """Of PyTorch's own ops, which make a pass over the output for each activation and each residual."""
    source, result = prod(inputs["x"]), prod(output)
    if op == "squeeze_excite":  # mean, fc1, activation, fc2, hardsigmoid, multiply
        images, channels = inputs["x"][:2]
        hidden = tensors["fc1_weight"].shape[0] * images
        vectors = 3 * images * channels + 2 * hidden
        return Traffic((2 * source + vectors) * itemsize, (result + vectors) * itemsize, 6)
    if op == "global_mean":
        return Traffic(source * itemsize, result * itemsize, 1)
    extra = int(options.get("activation") is not None)
    residual = len(inputs) - 1
    padded = _padded_copy(inputs["x"], tensors, options)
    reads = (padded + source if padded else source) + (extra + 2 * residual) * result
    writes = padded + (1 + extra + residual) * result
    return Traffic(reads * itemsize, writes * itemsize, 1 + extra + residual + (padded > 0))


def _padded_copy(shape: Shape, tensors: Mapping[str, Tensor], options: Mapping[str, Any]) -> int:
    """Elements of the copy that PyTorch makes where padding differs from side to side, 0 where it doesn't."""
    if "padding" not in options:
        return 0
    kernel = tensors["weight"].shape[2]
    geometry = options["stride"], options["padding"], options.get("dilation", 1)
    left, right, top, bottom = conv_shape((shape[2], shape[3]), kernel, *geometry).padding
    if left == right and top == bottom:
        return 0
    return prod(shape[:2]) * (shape[2] + top + bottom) * (shape[3] + left + right)
