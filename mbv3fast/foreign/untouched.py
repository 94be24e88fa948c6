"""Whether a module is what its class says it is."""

from __future__ import annotations

from torch import Tensor, nn

from mbv3fast.foreign.network import UnknownModuleError
from mbv3fast.torch_state import carries_hooks


def check_untouched(module: nn.Module, name: str) -> None:
    """Raise UnknownModuleError for what copies of the module's tensors would lose, or where these are no plain ones."""
    where = name or "model"
    if hasattr(module, "parametrizations"):
        raise UnknownModuleError(
            f"{where} has parametrizations, which must be removed (leave_parametrized=True keeps values)"
        )
    if carries_hooks(module):
        raise UnknownModuleError(f"{where} has hooks, which the fused network would not call")
    for attribute in module.__dict__:
        if callable(getattr(type(module), attribute, None)):
            raise UnknownModuleError(f"{where}.{attribute} was replaced")
    for part, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        if type(tensor) not in (nn.Parameter, Tensor):
            raise UnknownModuleError(f"{where}.{part} is a {type(tensor).__name__}, needs a plain tensor")
        if tensor.is_meta:
            raise UnknownModuleError(f"{where}.{part} is on meta, it has no data")
