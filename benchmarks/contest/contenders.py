"""Who takes part, and how each is made ready for a case; those of other runtimes are in `benchmarks.contest.peers`."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.contest.cases import NetworkCase
from benchmarks.contest.step_cases import OpCase, StepCase
from benchmarks.names import GPU_ONLY, OURS
from mbv3fast import ops
from mbv3fast.backend import lacks_network
from mbv3fast.cli.options import DTYPES
from mbv3fast.cuda.library import lacks_library
from mbv3fast.ops import pack_taps
from mbv3fast.timing import Run, Wait, replayed, waiter


class Ready(NamedTuple):
    """A contender made ready for a case.

    run: one call on inputs that are in place. fetch: its result as a tensor on the CPU. wait: until a result is there.
    by_events: whether the current CUDA stream sees its work, so that events time it. graphed: whether it is timed in a
    CUDA graph.
    """

    run: Run
    fetch: Callable[[Any], Tensor]
    wait: Wait
    by_events: bool = False
    graphed: bool = False


class Contender(NamedTuple):
    """`lacks` says why it can't run on a kind of device, empty where it can; `dtypes` of which cases it can; `tunes`
    that it times kernels when it is made ready, and so must be alone then. Both functions are of a module's top level,
    since processes exchange them.
    """

    name: str
    lacks: Callable[[str], str]
    prepare: Callable[[Any, torch.device], Ready]
    tunes: bool = False
    dtypes: tuple[str, ...] = tuple(DTYPES)

    def refuses(self, dtype: str, device: str) -> str:
        """Why it can't run a case of `dtype` on a kind of device; empty where it can."""
        return self.lacks(device) or ("" if dtype in self.dtypes else f"is for {' and '.join(self.dtypes)}")


def anywhere(_device: str) -> str:
    return ""


def gpu_only(device: str) -> str:
    return "" if device == "cuda" else GPU_ONLY


def importable(name: str) -> str:
    """Why a module can't be imported, empty where it can."""
    try:
        importlib.import_module(name)
    except Exception as error:  # a broken package raises whatever it likes
        return f"{name} can't be imported: {error}"[:300]
    return ""


def in_torch(run: Run, device: torch.device, *, graphed: bool = False) -> Ready:
    """What computes on PyTorch's current stream, and returns a tensor."""
    cuda = device.type == "cuda"
    return Ready(run, lambda out: out.detach().cpu(), waiter(device), by_events=cuda, graphed=cuda and graphed)


def _ours(case: NetworkCase, device: torch.device) -> Ready:
    model, x = case.ours(device), case.images(device)
    decision = model.explain(x)
    if not decision.fused:
        raise RuntimeError(f"mbv3fast serves it by PyTorch's modules: {decision.reason}")
    return in_torch(lambda: model(x), device)


def _ours_bound(case: NetworkCase, device: torch.device) -> Ready:
    return in_torch(case.ours(device).bind(case.images(device)), device)


def _ours_blocks(case: NetworkCase, device: torch.device) -> Ready:
    model, x = case.ours(device), case.images(device)
    model.backend = "cuda"
    return in_torch(lambda: model(x), device)


def _ours_network(case: NetworkCase, device: torch.device) -> Ready:
    model, x = case.ours(device), case.images(device)
    model.backend, model.plan_name = "cuda", "network"
    return in_torch(lambda: model(x), device)


def _lacks_network(device: str) -> str:
    return gpu_only(device) or lacks_network(torch.device(device), torch.float16)


def _lacks_cuda(device: str) -> str:
    return gpu_only(device) or lacks_library(torch.device(device))


def _eager(case: NetworkCase, device: torch.device) -> Ready:
    model, x = case.network(device), case.images(device)
    return in_torch(lambda: model(x), device)


def _channels_last(case: NetworkCase, device: torch.device) -> tuple[nn.Module, Tensor]:
    layout = torch.channels_last
    return case.network(device).to(memory_format=layout), case.images(device).to(memory_format=layout)  # type: ignore[call-overload]


def _eager_channels_last(case: NetworkCase, device: torch.device) -> Ready:
    model, x = _channels_last(case, device)
    return in_torch(lambda: model(x), device)


def _cuda_graph(case: NetworkCase, device: torch.device) -> Ready:
    model, x = case.network(device), case.images(device)
    return in_torch(replayed(lambda: model(x)), device)


def _cuda_graph_channels_last(case: NetworkCase, device: torch.device) -> Ready:
    model, x = _channels_last(case, device)
    return in_torch(replayed(lambda: model(x)), device)


def _timm(case: NetworkCase, device: torch.device) -> Ready:
    """timm's network with torchvision's weights and eps, by the order of its tensors, which is the same."""
    from tests.peers import PEERS, peer

    peer("torchvision")
    model = PEERS[f"mobilenetv3_{case.variant}_100"].build()
    theirs = case.network(torch.device("cpu")).float().state_dict()
    state = {
        name: tensor.reshape(own.shape)
        for (name, own), tensor in zip(model.state_dict().items(), theirs.values(), strict=True)
    }
    model.load_state_dict(state)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 1e-3
    layout = torch.channels_last
    model = model.to(device, DTYPES[case.dtype]).to(memory_format=layout).eval()  # type: ignore[call-overload]
    x = case.images(device).to(memory_format=layout)
    return in_torch(lambda: model(x), device)


def _compiled(mode: str, case: NetworkCase, device: torch.device) -> Ready:
    """In channels_last memory, frozen: weights are constants, batch norms folded."""
    import torch._inductor.config as inductor

    torch._dynamo.reset()
    inductor.freezing = True
    model, x = _channels_last(case, device)
    compiled = torch.compile(model, mode=mode, dynamic=False)
    return in_torch(lambda: compiled(x), device)


def _compile_default(case: NetworkCase, device: torch.device) -> Ready:
    return _compiled("default", case, device)


def _compile_reduce_overhead(case: NetworkCase, device: torch.device) -> Ready:
    return _compiled("reduce-overhead", case, device)


def _compile_max_autotune(case: NetworkCase, device: torch.device) -> Ready:
    return _compiled("max-autotune", case, device)


# cuDNN's algorithms are chosen by timing them, whether PyTorch calls it or what torch.compile makes.
TORCH_NETWORKS: Sequence[Contender] = (
    Contender(OURS, anywhere, _ours),
    Contender(f"{OURS} bound", gpu_only, _ours_bound),
    Contender(f"{OURS} blocks", _lacks_cuda, _ours_blocks, dtypes=("float16", "bfloat16")),
    Contender(f"{OURS} network", _lacks_network, _ours_network, dtypes=("float16", "bfloat16")),
    Contender("torchvision", anywhere, _eager, tunes=True),
    Contender("torchvision channels_last", anywhere, _eager_channels_last, tunes=True),
    Contender("torchvision CUDA graph", gpu_only, _cuda_graph, tunes=True),
    Contender("torchvision CUDA graph channels_last", gpu_only, _cuda_graph_channels_last, tunes=True),
    Contender("timm", anywhere, _timm, tunes=True),
    Contender("torch.compile default", anywhere, _compile_default, tunes=True),
    Contender("torch.compile reduce-overhead", gpu_only, _compile_reduce_overhead, tunes=True),
    Contender("torch.compile max-autotune", gpu_only, _compile_max_autotune, tunes=True),
)


def _our_op(case: OpCase, device: torch.device) -> Ready:
    tensors = case.tensors(device)
    if "k" in dict(case.sizes):
        tensors["weight"] = pack_taps(tensors["weight"])
    op, options = getattr(ops, case.op), dict(case.options)
    return in_torch(lambda: op(**tensors, **options), device, graphed=True)


def _eager_op(case: OpCase, device: torch.device) -> Ready:
    tensors = case.tensors(device)
    return in_torch(lambda: case.refer(tensors), device, graphed=True)


def _compiled_op(case: OpCase, device: torch.device) -> Ready:
    torch._dynamo.reset()
    tensors = case.tensors(device)
    compiled = torch.compile(case.refer, dynamic=False)
    return in_torch(lambda: compiled(tensors), device, graphed=True)


OP_CONTENDERS: Sequence[Contender] = (
    Contender(OURS, anywhere, _our_op),
    Contender("PyTorch", anywhere, _eager_op, tunes=True),
    Contender("torch.compile", anywhere, _compiled_op, tunes=True),
)


def _our_step(case: StepCase, device: torch.device) -> Ready:
    return in_torch(case.run(device), device, graphed=True)


STEP_CONTENDERS: Sequence[Contender] = (Contender(OURS, anywhere, _our_step),)
