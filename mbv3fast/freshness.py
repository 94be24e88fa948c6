"""Whether a model is still what an engine was built from. A stale engine would be wrong in silence."""

from __future__ import annotations

import functools
import weakref
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook

from mbv3fast.torch_state import fork_safe_lock

# Attributes that folding reads, beside parameters, buffers and submodules.
_WATCHED = (
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
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for state in self._states:
            groups.setdefault(tuple(name for name in _WATCHED if name in state), []).append(state)
        self._groups = [(itemgetter(*names), states) for names, states in groups.items() if names]
        dicts = [getattr(m, kind) for m in modules for kind in ("_modules", "_forward_hooks", "_forward_pre_hooks")]
        self._empty = [live for live in dicts if not live]
        self._filled = [live for live in dicts if live]
        self._held_filled = [dict(live) for live in self._filled]
        self._held = self._read()

    def _read(self) -> tuple[list[Any], ...]:
        return (
            list(map(type, self._modules)),
            list(map(len, self._states)),  # a new attribute may be a replaced forward
            [list(map(get, states)) for get, states in self._groups],
            list(chain.from_iterable(self._filled)),  # the order of submodules counts: a Sequential runs in it
        )

    def hold(self) -> bool:
        """Whether all is as it was."""
        if any(self._empty) or self._filled != self._held_filled:
            return False
        try:
            return self._read() == self._held
        except KeyError:  # an attribute is gone
            return False


class _Slots:
    """Parameters and buffers by identity, and the data pointer and version of each."""

    def __init__(self, modules: list[nn.Module]) -> None:
        self._live = [slots for module in modules for slots in (module._parameters, module._buffers) if slots]
        self._held = [dict(slots) for slots in self._live]
        found = [(slots, name, tensor) for slots in self._live for name, tensor in slots.items() if tensor is not None]
        self.tensors = [tensor for _, _, tensor in found]
        self._single = [entry for entry in found if entry[2].numel() == 1]
        self._pointers = list(map(Tensor.data_ptr, self.tensors))
        self._versions = list(map(_version, self.tensors))

    def hold(self) -> bool:
        """Whether the same tensors stand in the same places, unwritten as far as PyTorch counts."""
        try:
            if self._live != self._held:  # the same tensor is equal at once, without a look at its values
                return False
        except RuntimeError:  # another tensor: neither equal nor unequal, but for one of one element
            return False
        return (
            all(slots[name] is tensor for slots, name, tensor in self._single)
            and list(map(_version, self.tensors)) == self._versions
            and list(map(Tensor.data_ptr, self.tensors)) == self._pointers
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
