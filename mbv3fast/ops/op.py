"""An op as torch.library knows it: one schema, a fake, kernels where there are any, the reference elsewhere."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.functional_tensor import FunctionalTensorMode

from mbv3fast.backend import op_backend
from mbv3fast.launching import tracing
from mbv3fast.ops.spec import Spec, conv_shape
from mbv3fast.ops.target import Target, UncoveredError, cuda_target, target_of
from mbv3fast.torch_state import keeps_ops, on_device, transform_active

NAMESPACE = "mbv3fast"
_ROWS = torch.contiguous_format
_LIBRARY = torch.library.Library(NAMESPACE, "FRAGMENT")
OPS: dict[str, Op] = {}

Result = Tensor | tuple[Tensor, ...]


class Op:
    """`op(*tensors, **options)` checks and computes; `op.run` are its kernels without the checks.

    PyTorch's compilers see the Triton kernels that it launches on a GPU, torch.export sees the op.

    With gradients to record it computes the reference, which autograd knows. Kernels run on a GPU, or under Triton's
    interpreter or emulated on a CPU; other tensors get the reference, as does what CUDA's don't cover without Triton's.
    """

    def __init__(self, spec: Spec, run: Callable[..., Result], reference: Callable[..., Result]) -> None:
        self.spec = spec
        self.run = run
        self._reference = reference
        _LIBRARY.define(spec.schema)
        for key in ("CPU", "CUDA"):
            _LIBRARY.impl(spec.name, self._compute, key)
        _LIBRARY.impl(spec.name, self._differentiate, "Autograd")
        name = f"{NAMESPACE}::{spec.name}"
        torch.library.register_fake(name, self._fake, lib=_LIBRARY)
        torch.library.register_torch_dispatch(name, FunctionalTensorMode, self._decompose, lib=_LIBRARY)
        self._registered = getattr(getattr(torch.ops, NAMESPACE), spec.name).default
        OPS[spec.name] = self

    def __call__(self, *tensors: Tensor | None, **options: Any) -> Any:
        if type(options.get("padding")) is int:
            options["padding"] = (options["padding"],) * 4
        sizes = self.spec.check(tensors, options)
        if options.get("padding") == "same":
            geometry = options["stride"], options["padding"], options.get("dilation", 1)
            options["padding"] = conv_shape((sizes["H"], sizes["W"]), sizes["k"], *geometry).padding
        return self._registered(*tensors, **options)

    def reference(self, *tensors: Tensor | None, **options: Any) -> tuple[Tensor, ...]:
        """The reference's outputs, in the layout and dtype of the kernels'."""
        kind = next(t for t in (*tensors, *options.values()) if isinstance(t, Tensor)).device.type
        with torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext():
            return tuple(_in_layout(out) for out in as_tuple(self._reference(*tensors, **options)))

    def compute(self, *tensors: Tensor | None, target: Target, **given: Any) -> Result:
        """By kernels, unchecked; by the reference where CUDA's don't cover it and Triton's can't run."""
        with suppress(*(() if target.triton else (UncoveredError, ImportError))):
            return self.run(*tensors, **given, target=target)
        return self._result(self.reference(*tensors, **given))

    def _compute(self, *tensors: Tensor | None, **options: Any) -> Result:
        self.spec.check(tensors, options)
        first, tensors = self._leader(tensors), _packed(tensors)
        server = op_backend(first.device, first.dtype)
        if server != "torch":
            make = functools.partial(cuda_target, dtype=first.dtype) if server == "cuda" else target_of
            with on_device(first):
                return self.compute(*tensors, **options, target=make(first.device))
        return self._result(self.reference(*tensors, **options))

    def _differentiate(self, *tensors: Tensor | None, **options: Any) -> Result:
        recorded = torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)
        if recorded or transform_active():
            self.spec.check(tensors, options)
            return self._result(self.reference(*tensors, **options))
        with torch._C._AutoDispatchBelowAutograd():
            return self._registered(*tensors, **options)

    def _decompose(self, mode: FunctionalTensorMode, op: Any, types: Any, args: Any, options: Any) -> Any:
        """As torch.library.triton_op does it: Inductor compiles the kernels, and packages hold their code."""
        first = self._leader(args)
        if keeps_ops() or first.device.type != "cuda" or op_backend(first.device, first.dtype) != "triton":
            return mode.__torch_dispatch__(op, types, args, options)
        with mode, tracing():
            return self.run(*_packed(args), **options, target=target_of(first.device))

    def _fake(self, *tensors: Tensor | None, **options: Any) -> Result:
        shapes = {arg.name: t.shape for arg, t in zip(self.spec.args, tensors, strict=True) if t is not None}
        sizes = self.spec.sizes(shapes, options)
        first = self._leader(tensors)
        return self._result(tuple(empty(shape, like=first) for shape in self.spec.output_shapes(sizes)))

    def _leader(self, tensors: tuple[Tensor | None, ...]) -> Tensor:
        """The tensor whose device and dtype the outputs have."""
        found = (t for arg, t in zip(self.spec.args, tensors, strict=True) if t is not None and arg.kind != "image")
        return next(found)

    def _result(self, outputs: tuple[Tensor, ...]) -> Result:
        return outputs if len(self.spec.outputs) > 1 else outputs[0]


def empty(shape: tuple[int, ...], *, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised tensor on the device of `like`; [N, C, H, W] is in channels_last memory, whatever its sizes."""
    dtype = dtype or like.dtype
    if len(shape) != 4:
        return torch.empty(shape, dtype=dtype, device=like.device)
    images, channels, height, width = shape
    return torch.empty((images, height, width, channels), dtype=dtype, device=like.device).permute(0, 3, 1, 2)


def empty_input(spec: Spec, argument: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor as a network that computes in `dtype` has it for an argument: images lie as users' do."""
    like = torch.empty(0, dtype=spec.dtype_of(argument, dtype), device=device)
    kinds = {arg.name: arg.kind for arg in spec.args}
    return like.new_empty(tuple(shape)) if kinds[argument] == "image" else empty(tuple(shape), like=like)


def _packed(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """What kernels read by plain rows, contiguous; images are looked at by `pixels_first`."""
    return tuple(t if t is None or t.dim() == 4 or t.is_contiguous() else t.clone(memory_format=_ROWS) for t in tensors)


def _in_layout(out: Tensor) -> Tensor:
    if out.dim() != 4:
        return out.contiguous()
    if min(out.shape) > 1:
        return out.contiguous(memory_format=torch.channels_last)
    return empty(tuple(out.shape), like=out).copy_(out)  # strides of a size of 1 are anything to `contiguous`


def as_tuple(result: Result) -> tuple[Tensor, ...]:
    """What an op returns, also where it is one tensor."""
    return result if isinstance(result, tuple) else (result,)
