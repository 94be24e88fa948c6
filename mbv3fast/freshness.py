"""Whether a model is still what an engine was built from. A stale engine would be wrong in silence."""

from __future__ import annotations

import functools
import weakref
from itertools import chain, repeat
from operator import attrgetter, getitem, is_
from typing import Any

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
_version = attrgetter("_version")
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Modules:
    """Modules, their classes, attributes, submodules and hooks as they are, each beside what it held.

    Compared list by list, in C: this runs at every forward, for some two hundred modules.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self._modules = modules
        self._states = [module.__dict__ for module in modules]
        watched = [(state, name) for state in self._states for name in sorted(_WATCHED & set(state))]
        self._watched_states = [state for state, _ in watched]
        self._watched_names = [name for _, name in watched]
        # Live dicts; equality of dicts takes the same object for equal at once.
        self._dicts = [
            getattr(m, kind) for m in modules for kind in ("_modules", "_forward_hooks", "_forward_pre_hooks")
        ]
        self._held_dicts = [dict(live) for live in self._dicts]
        self._held = self._read()

    def _read(self) -> tuple[list[Any], ...]:
        return (
            list(map(type, self._modules)),
            list(map(len, self._states)),  # a new attribute may be a replaced forward
            list(map(dict.get, self._states, repeat("forward"))),
            list(map(getitem, self._watched_states, self._watched_names)),
        )

    def hold(self) -> bool:
        """Whether all is as it was; the order of submodules counts, since a Sequential runs in it."""
        try:
            same = self._read() == self._held and self._dicts == self._held_dicts
        except KeyError:  # an attribute is gone
            return False
        return same and all(map(_in_order, self._dicts, self._held_dicts))


class _Slots:
    """Parameters and buffers by identity, and the data pointer and version of each."""

    def __init__(self, modules: list[nn.Module]) -> None:
        slots = [slots for module in modules for slots in (module._parameters, module._buffers) if slots]
        self._live = slots
        self._names = [list(held) for held in slots]
        self._held = [tensor for held in slots for tensor in held.values()]
        self.tensors = [tensor for tensor in self._held if tensor is not None]
        self._pointers = list(map(Tensor.data_ptr, self.tensors))
        self._versions = list(map(_version, self.tensors))

    def hold(self) -> bool:
        """Whether the same tensors stand in the same places, unwritten as far as PyTorch counts."""
        live = chain.from_iterable(slots.values() for slots in self._live)
        if list(map(len, self._live)) != list(map(len, self._names)) or not all(map(is_, live, self._held)):
            return False
        return list(map(_version, self.tensors)) == self._versions and (
            list(map(Tensor.data_ptr, self.tensors)) == self._pointers
        )


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
        self._modules = _Modules(modules)
        self._slots = _Slots(modules)
        tensors = self._slots.tensors
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
        if not (self._slots.hold() and self._modules.hold()):
            return False
        return all(torch.equal(torch.cat(views), seen) for views, seen in zip(self._probes, self._probed, strict=True))


def _in_order(live: dict[str, Any], held: dict[str, Any]) -> bool:
    """Whether equal dicts have their keys in the same order too."""
    return len(live) < 2 or list(live) == list(held)


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
