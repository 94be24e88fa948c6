"""What PyTorch's compilers see of a fused program on a GPU: our launches, for any batch, and no other computation.

No GPU is needed for that: the tensors are fake.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch._functorch.aot_autograd import aot_export_module
from torch._subclasses.fake_tensor import FakeTensorMode

from mbv3fast.ops import linear, op
from mbv3fast.ops.target import Target, configured_for
from tests.networks import calibrated_large, trained_small
from tests.numerics import Network
from tests.offline import compiling  # noqa: F401 (skips where kernels are interpreted)

SIZES = (int, torch.SymInt)


def on_fake_gpu(program: nn.Module) -> nn.Module:
    """Its buffers as tensors of a GPU, without data."""
    for name, buffer in list(program.named_buffers()):
        setattr(program, name, torch.empty_strided(buffer.shape, buffer.stride(), dtype=buffer.dtype, device="cuda"))
    return program


def traced(network: Callable[[], Network], images: int, monkeypatch: pytest.MonkeyPatch) -> torch.fx.GraphModule:
    """The graph that Inductor gets of a network in float16, whose launches are for `images`."""
    monkeypatch.setattr(op, "op_backend", lambda *_: "triton")
    monkeypatch.setattr(op, "target_of", lambda *_: Target())
    program = copy.deepcopy(network()).half().fused()
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        x = torch.empty(2, 3, 224, 224, dtype=torch.float16, device="cuda")
        batch = torch.export.Dim("batch", min=1, max=1024)
        exported = torch.export.export(on_fake_gpu(program), (x,), dynamic_shapes=({0: batch},))
    given = [node.meta["val"] for node in exported.graph.nodes if node.op == "placeholder"]
    with given[-1].fake_mode as mode, torch.no_grad(), configured_for(images):
        graph, _ = aot_export_module(exported.graph_module, tuple(given), trace_joint=False)
    assert mode.shape_env.guards == [], "it is for any batch"
    return graph


@pytest.mark.parametrize(
    ("network", "images", "launches"),
    [(calibrated_large, 1, 46), (trained_small, 1, 37), pytest.param(trained_small, 128, 39, marks=pytest.mark.slow)],
)
def test_compilers_see_launches(
    network: Callable[[], Network], images: int, launches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = traced(network, images, monkeypatch)
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    called = Counter(_name(node.target) for node in nodes if not isinstance(node.meta["val"], SIZES))
    assert called.pop("triton_kernel_wrapper_functional") == launches
    assert set(called) <= {"permute", "view", "unsqueeze", "empty", "getitem"}, "nothing but launches computes"


def test_compilers_see_rows_that_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels read matrices by plain rows, as eager calls pass them."""
    monkeypatch.setattr(op, "op_backend", lambda *_: "triton")
    monkeypatch.setattr(op, "target_of", lambda *_: Target())
    with FakeTensorMode() as mode, torch.no_grad():
        x, weight = (torch.empty(64, 32, device="cuda").t() for _ in range(2))
        arguments = (x, weight, torch.empty(32, device="cuda"))
        graph, _ = aot_export_module(Linear(), arguments, trace_joint=False)
    assert mode is not None
    names = [_name(node.target) for node in graph.graph.nodes if node.op == "call_function"]
    assert names.count("clone") == 2
    assert "triton_kernel_wrapper_functional" in names


class Linear(nn.Module):
    def forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor]:
        return (linear(x, weight, bias),)


def test_export_sees_ops() -> None:
    exported = torch.export.export(trained_small().fused(), (torch.zeros(2, 3, 64, 64),))
    for program in (exported, exported.run_decompositions({})):
        names = {str(node.target).partition(".")[0] for node in program.graph.nodes if node.op == "call_function"}
        assert "mbv3fast" in names


def _name(target: Any) -> str:
    name = getattr(target, "__name__", str(target))
    return name.partition(".")[0]
