"""Whether a model is still what an engine was built from. A stale engine would be wrong in silence."""

from __future__ import annotations

import functools
import weakref
from itertools import chain, repeat
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
_DICTS = ("_parameters", "_buffers", "_modules", "_forward_hooks", "_forward_pre_hooks")
_submodules = itemgetter("_modules")
_version = attrgetter("_version")
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class _Modules:
    """Modules, their classes, attributes, tensors, submodules and hooks as they are, each beside what it held.

    Read and compared in lists, in C: this runs at every forward, for some two hundred modules.
    """

    def __init__(self, modules: list[nn.Module]) -> None:
        self._modules = modules
        self._states = [module.__dict__ for module in modules]
        self._parents = [state for state in self._states if len(state["_modules"]) > 1]
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for state in self._states:
            groups.setdefault(tuple(name for name in _WATCHED if name in state), []).append(state)
        self._groups = [(itemgetter(*names, *_DICTS), states) for names, states in groups.items()]
        classes, counts, replaced, attributes, order = self._read()
        held = [[tuple(map(_held, values)) for values in group] for group in attributes]
        self._held = (classes, counts, replaced, held, order)

    def _read(self) -> tuple[list[Any], ...]:
        return (
            list(map(type, self._modules)),
            list(map(len, self._states)),  # a new attribute may stand for a method
            list(map(dict.__contains__, self._states, repeat("forward"))),
            [list(map(get, states)) for get, states in self._groups],
            list(chain.from_iterable(map(_submodules, self._parents))),  # a Sequential runs in this order
        )

    def hold(self) -> bool:
        """Whether all is as it was."""
        try:
            return self._read() == self._held  # the same tensor is equal at once, without a look at its values
        except (KeyError, RuntimeError):  # an attribute is gone; another tensor is neither equal nor unequal
            return False


class _Tensors:
    """Parameters and buffers: the place, memory, size and version of each."""

    def __init__(self, modules: list[nn.Module]) -> None:
        found = [
            (module.__dict__, kind, name, tensor)
            for module in modules
            for kind in ("_parameters", "_buffers")
            for name, tensor in module.__dict__[kind].items()
            if tensor is not None
        ]
        self.tensors = [tensor for *_, tensor in found]
        self._single = [entry for entry in found if entry[3].numel() == 1]  # which may equal another
        self._matrices = [tensor for tensor in self.tensors if tensor.dim() > 1]
        self._held = self._read()

    def _read(self) -> tuple[list[Any], ...]:
        return (
            list(map(_version, self.tensors)),
            list(map(Tensor.data_ptr, self.tensors)),
            list(map(Tensor.numel, self.tensors)),
            list(map(Tensor.stride, self._matrices)),
        )

    def hold(self) -> bool:
        """Whether they are unwritten as far as PyTorch counts; `_Modules` sees most that are replaced."""
        return self._read() == self._held and all(
            state[kind][name] is tensor for state, kind, name, tensor in self._single
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
        self._tensors = _Tensors(modules)
        tensors = self._tensors.tensors
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
        if not (self._modules.hold() and self._tensors.hold()):
            return False
        return all(torch.equal(torch.cat(views), seen) for views, seen in zip(self._probes, self._probed, strict=True))


def _held(value: Any) -> Any:
    """A copy of what may be changed where it is."""
    return type(value)(value) if isinstance(value, (dict, list)) else value


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
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            return f"{name} is a {type(module).__name__}"
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_inference():
            return f"{name} was made under inference_mode, where PyTorch doesn't count edits"
        if type(tensor) not in (Tensor, nn.Parameter) or tensor.is_meta:
            return f"{name} is a {type(tensor).__name__} on {tensor.device}"
        if tensor.layout is not torch.strided or tensor.is_neg():
            return f"{name} is {'the negative of its memory' if tensor.is_neg() else tensor.layout}"
    return None
