"""Whether a model is still what an engine was built from. A stale engine would be wrong in silence."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from mbv3fast.torch_state import fork_safe_lock

# Attributes that folding reads, beside parameters, buffers and submodules.
_WATCHED = frozenset(
    {
        "training",
        "stride",
        "padding",
        "dilation",
        "groups",
        "padding_mode",
        "eps",
        "output_size",
        "has_expand",
        "has_squeeze_excite",
        "has_residual",
    }
)
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _ModuleRecord(NamedTuple):
    """A module, its class, its attributes and its containers as they are, each beside what it held."""

    module: nn.Module
    kind: type[nn.Module]
    state: dict[str, Any]
    size: int  # a new attribute may be a replaced forward
    forward: Any
    read_watched: Callable[[dict[str, Any]], Any]
    watched: Any
    children: dict[str, Any]
    held_children: tuple[tuple[str, Any], ...]
    hooks: dict[int, Any]
    held_hooks: dict[int, Any]
    pre_hooks: dict[int, Any]
    held_pre_hooks: dict[int, Any]

    @classmethod
    def of(cls, module: nn.Module) -> _ModuleRecord:
        state = module.__dict__
        read = itemgetter(*sorted(_WATCHED & set(state)))
        return cls(
            module=module,
            kind=type(module),
            state=state,
            size=len(state),
            forward=state.get("forward"),
            read_watched=read,
            watched=read(state),
            children=module._modules,
            held_children=tuple(module._modules.items()),
            hooks=module._forward_hooks,
            held_hooks=dict(module._forward_hooks),
            pre_hooks=module._forward_pre_hooks,
            held_pre_hooks=dict(module._forward_pre_hooks),
        )


class _Slot(NamedTuple):
    """Where a parameter or buffer is, or, such as a convolution's bias, could be."""

    slots: Mapping[str, Tensor | None]
    name: str
    tensor: Tensor | None


class Snapshot:
    """What decides a model's eval forward, recorded so that comparing it costs a fraction of a millisecond.

    Every parameter and buffer by identity, data pointer and version; every submodule by identity; every
    attribute that folding reads; steps of the optimizers that hold its parameters. Writes
    that PyTorch doesn't count (`p.data.mul_(2)`, a NumPy view) are seen, on a CPU, where they change a tensor's middle
    element.
    """

    def __init__(self, model: nn.Module, within: tuple[nn.Module, ...]) -> None:
        """Record `within`, submodules of `model`, and which modules `model` itself holds."""
        _watch_optimizers()
        self._children = (model._modules, tuple(model._modules.items()))
        self._stepped = False
        modules = list(dict.fromkeys(m for root in within for m in root.modules()))
        self._modules = [_ModuleRecord.of(module) for module in modules]
        self._slots = [
            _Slot(slots, name, tensor)
            for module in modules
            for slots in (module._parameters, module._buffers)
            for name, tensor in slots.items()
        ]
        tensors = [slot.tensor for slot in self._slots if slot.tensor is not None]
        self._tensors = [(tensor, tensor.data_ptr(), tensor._version) for tensor in tensors]
        # One element of each tensor, through views: shows whole-tensor writes that bump no counter.
        self._probes = _probes(tensors)
        self._probed = [torch.cat(views) for views in self._probes]
        # Kept alive, so that memory that `p.data = new` frees can't come back at the same address.
        self._storages = [tensor.untyped_storage() for tensor in tensors]
        self.parameters = frozenset(id(p) for module in modules for p in module._parameters.values())
        with _WATCHING:
            _SNAPSHOTS.add(self)

    def optimizer_stepped(self) -> None:
        """An optimizer of these parameters has moved them; fused ones leave no other trace."""
        self._stepped = True

    def holds(self) -> bool:
        """Whether nothing recorded has changed."""
        children, held_children = self._children
        if self._stepped or tuple(children.items()) != held_children:
            return False
        for slots, name, held_tensor in self._slots:
            if slots.get(name) is not held_tensor:
                return False
        for tensor, pointer, version in self._tensors:
            if tensor.data_ptr() != pointer or tensor._version != version:
                return False
        # Unpacked at once, since this runs at every forward: fields by name cost half as much again.
        records = self._modules
        for module, kind, state, size, forward, read, watched, sub, held, hooks, held_hooks, pre, held_pre in records:
            if type(module) is not kind or len(state) != size or read(state) != watched:
                return False
            if (sub and tuple(sub.items()) != held) or state.get("forward") is not forward:
                return False
            if hooks != held_hooks or pre != held_pre:
                return False
        return all(torch.equal(torch.cat(views), seen) for views, seen in zip(self._probes, self._probed, strict=True))


def _probes(tensors: list[Tensor]) -> list[list[Tensor]]:
    """A view [1] of the middle of each floating-point tensor on a CPU, grouped by dtype and device."""
    groups: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel() and tensor.device.type == "cpu":  # a GPU would have to wait
            middle = tensor.detach()[tuple(size // 2 for size in tensor.shape)].view(1)
            middle = middle.view(_BITS[tensor.element_size()])  # as bits, since NaN equals nothing
            groups.setdefault((tensor.dtype, tensor.device), []).append(middle)
    return list(groups.values())


_SNAPSHOTS: weakref.WeakSet[Snapshot] = weakref.WeakSet()
_WATCHING = fork_safe_lock()


def _after_step(optimizer: Optimizer, *_: Any) -> None:
    """Tell the snapshots of the parameters that `optimizer` has just moved."""
    with _WATCHING:
        snapshots = list(_SNAPSHOTS)
    if snapshots:
        moved = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for snapshot in snapshots:
            if not snapshot.parameters.isdisjoint(moved):
                snapshot.optimizer_stepped()


@functools.cache
def _watch_optimizers() -> None:
    """Once, and not before it is needed: the hook is called by every optimizer of the process."""
    register_optimizer_step_post_hook(_after_step)


def untrackable(model: nn.Module) -> str | None:
    """Why edits of the model's tensors could not be seen, None where they can."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_inference():
            return f"{name} was made under inference_mode, where PyTorch doesn't count edits"
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:
            return f"{name} is a {type(tensor).__name__} on {tensor.device}"
    return None
