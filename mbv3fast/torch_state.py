"""What PyTorch is doing around a call. Most of it has no public name: the private ones are used here alone."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx.experimental import _config as fx_config
from torch.nn.modules import module as torch_module

_CYCLES = 2e9  # of a GPU in a second


def is_traced(x: object) -> bool:
    """Whether `x` stands for other tensors (compile, export, jit and fx tracing) or is of a subclass of Tensor."""
    return type(x) is not Tensor or torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def is_recorded() -> bool:
    """Whether make_fx writes down what is computed."""
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY) is not None


def autocast_enabled(device: torch.device) -> bool:
    """Whether autocast is on for tensors of `device`, of whatever kind."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def transform_active() -> bool:
    """Whether a torch.func transform or forward-mode differentiation is under way."""
    return torch._C._functorch.maybe_current_level() is not None or forward_ad._current_level >= 0


def is_replica(model: nn.Module) -> bool:
    """Whether `model` is one of the copies that nn.DataParallel makes for one call."""
    return getattr(model, "_is_replica", False)


def has_hooks(module: nn.Module) -> bool:
    """Whether anything runs before or after the module's own forward; backward hooks are idle without gradients."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def carries_hooks(module: nn.Module) -> bool:
    """Whether hooks of any kind are with the module or its own parameters, those for gradients or state dicts too."""
    hooks = [value for name, value in vars(module).items() if name.endswith("_hooks")]
    for parameter in module.parameters(recurse=False):
        hooks += [parameter._backward_hooks, parameter._post_accumulate_grad_hooks]
    return any(hooks)


def overrides(model: nn.Module, kind: type[nn.Module], methods: tuple[str, ...]) -> bool:
    """Whether `model` has methods of its own in place of those of `kind`."""
    return any(m in model.__dict__ or getattr(type(model), m) is not getattr(kind, m) for m in methods)


def global_hooks() -> bool:
    """Whether hooks for all modules of the process are registered."""
    return bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)


def rewrites_state_dicts(model: nn.Module) -> bool:
    """Whether a hook may change a state dict before it is loaded."""
    return any(module._load_state_dict_pre_hooks for module in model.modules())


def known_size(size: int | torch.SymInt, images: int | None = None) -> int:
    """A size; where tracing made symbols of it, what it is in the example, or with `images` in place of the batch if
    that is the only symbol. No guard comes of asking.
    """
    if isinstance(size, int):
        return size
    symbols = size.node.expr.free_symbols
    if images is None or len(symbols) > 1:
        return int(size.node.hint)
    return int(size.node.expr.subs(dict.fromkeys(symbols, images)))


@contextmanager
def for_any_batch() -> Iterator[None]:
    """Within, tracing takes a symbol for any number, where by itself it would bound it for the sake of speed."""
    threads = torch.get_num_threads()
    torch.set_num_threads(max(2, threads))  # with one, PyTorch looks at the batch to choose among a CPU's convolutions
    try:
        with fx_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
            yield
    finally:
        torch.set_num_threads(threads)


def keeps_ops() -> bool:
    """Whether torch.export is tracing, whose programs have ops whole."""
    from torch.export._trace import custom_triton_ops_decomposition_disabled  # seconds, and only tracers ask

    return custom_triton_ops_decomposition_disabled()


def on_device(x: Tensor) -> AbstractContextManager[Any]:
    """Within, launches go to the GPU of `x`, whichever is current outside."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def tf32_allowed() -> bool:
    """Whether PyTorch's switch lets float32 products be computed in TF32."""
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


def cuda_stream(device: torch.device) -> int:
    """The current stream of a GPU, without the object of torch.cuda.current_stream; 0 for a CPU, which has none."""
    return torch._C._cuda_getCurrentRawStream(device.index) if device.type == "cuda" else 0


def cuda_driver_version() -> int:
    """The newest CUDA that the driver knows, as 13000."""
    return torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined] # not in a CPU build


def occupy_gpu(seconds: float) -> None:
    """Let the current stream do nothing for about so long, 0.1 s at most."""
    torch.cuda._sleep(int(min(seconds, 0.1) * _CYCLES))


def fork_safe_lock() -> threading.Lock:
    """A lock that a forked child finds free, whichever thread of its parent held it: that thread isn't there."""
    lock = threading.Lock()
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=lock._at_fork_reinit)  # type: ignore[attr-defined]
    return lock
