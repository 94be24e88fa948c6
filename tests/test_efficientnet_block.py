"""examples/efficientnet_block.py and docs/single-ops.md: a block of another network by our ops, against its modules.

Here a CPU computes the references; `tests/interpreted` compares the blocks on the kernels.
"""

from __future__ import annotations

import copy
import itertools
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples import efficientnet_block as example
from examples.efficientnet_block import FusedMBConv, MBConv, fold
from mbv3fast.ops import depthwise_excite_project
from tests.networks import randomise
from tests.numerics import assert_agrees
from tests.op_cases import DTYPES

ROOT = Path(__file__).parents[1]
SHAPES = {  # inputs, outputs, kernel, stride
    "with a residual": (12, 12, 3, 1),
    "of stride 2": (8, 20, 5, 2),
}


def made(name: str, dtype: torch.dtype = torch.float32) -> tuple[MBConv, Tensor]:
    """A block in eval, and an input for it."""
    torch.manual_seed(0)
    block = MBConv(*SHAPES[name])
    randomise(block)
    x = torch.randn(2, SHAPES[name][0], 9, 8, generator=torch.Generator().manual_seed(1))
    return block.to(dtype), x.to(dtype)


@torch.no_grad()
@pytest.mark.parametrize(("name", "dtype"), [*zip(itertools.cycle(SHAPES), DTYPES)])
def test_a_folded_block_agrees_with_its_modules(name: str, dtype: torch.dtype) -> None:
    block, x = made(name, dtype)
    truth, fused = copy.deepcopy(block).double()(x.double()), FusedMBConv(block)
    assert_agrees(fused(x), block(x), truth)
    assert_agrees(fused.in_steps(x), block(x), truth)


def test_a_bias_before_the_norm_is_folded_too() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    randomise(layers)
    weight, bias = fold(*layers)
    x = torch.randn(2, 3, 5, 5)
    torch.testing.assert_close(F.conv2d(x, weight, bias), layers(x))


def test_a_norm_without_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="norm: has no running statistics"):
        fold(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False))


class Steps(nn.Module):
    """A folded block by four ops."""

    def __init__(self, fused: FusedMBConv) -> None:
        super().__init__()
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        return self.fused.in_steps(x)


OPS = {False: {"inverted_residual"}, True: {"pointwise_conv", "depthwise_conv", "squeeze_excite"}}


@pytest.mark.parametrize("in_steps", OPS)
def test_compile_and_export(in_steps: bool) -> None:
    block, x = made("with a residual")
    fused = FusedMBConv(block)
    model = Steps(fused) if in_steps else fused
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    targets = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert targets == {f"mbv3fast.{op}.default" for op in OPS[in_steps]}
    many = torch.cat([x, x, x])
    for run, given in ((compiled, x), (exported.module(), many)):
        assert torch.equal(run(given), model(given))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_example_compares_and_times(
    dtype: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--channels", "16", "--size", "7", "--batch", "2", "--dtype", dtype, "--rounds", "2"]
    monkeypatch.setattr(sys, "argv", ["efficientnet_block.py", *arguments])
    example.main()
    said = capsys.readouterr().out.splitlines()
    device = "cuda" if torch.cuda.is_available() else "a CPU"
    assert device == "cuda" or said[0].startswith(f"x [2, 16, 7, 7], {dtype}, on a CPU (")
    assert said[1].startswith("inverted_residual: ")
    assert re.fullmatch(r"largest error against float64: PyTorch \S+, one op \S+, four ops \S+", said[2])
    assert re.fullmatch(r"time of a call: PyTorch \S+ ms, one op \S+ ms, four ops \S+ ms", said[3])
    assert device == "cuda" or said[4].startswith("no kernel of mbv3fast ran")


@pytest.mark.parametrize("factor", [1.001, float("nan")])
def test_the_example_fails_where_the_ops_err(factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["efficientnet_block.py", "--channels", "16", "--size", "7"])
    right = example.FusedMBConv.in_steps
    monkeypatch.setattr(example.FusedMBConv, "in_steps", lambda self, x: right(self, x) * factor)
    with pytest.raises(SystemExit, match="err more than twice"):
        example.main()


def of_timm(block: Any) -> Any:
    """timm's InvertedResidual under the names of ours."""
    pairs = {"expand": (block.conv_pw, block.bn1), "depthwise": (block.conv_dw, block.bn2)}
    pairs["project"] = (block.conv_pwl, block.bn3)
    parts = {name: SimpleNamespace(conv=conv, norm=norm) for name, (conv, norm) in pairs.items()}
    return SimpleNamespace(
        **parts, fc1=block.se.conv_reduce, fc2=block.se.conv_expand, has_residual=bool(block.has_skip)
    )


@torch.no_grad()
def test_every_block_of_timms_efficientnet(timm: ModuleType) -> None:
    torch.manual_seed(0)
    model = timm.create_model("efficientnet_b0")
    randomise(model)
    first, *others = [block for stage in model.blocks for block in stage]
    assert len(others) == 15
    for block in others:
        x = torch.randn(2, block.conv_pw.in_channels, 8, 7)
        assert_agrees(FusedMBConv(of_timm(block))(x), block(x), copy.deepcopy(block).double()(x.double()))
    x = torch.randn(2, 32, 8, 7)
    fc = [t.flatten(1) if t.dim() == 4 else t for layer in (first.se.conv_reduce, first.se.conv_expand)
          for t in (layer.weight, layer.bias)]  # fmt: skip
    tensors = (x, *fold(first.conv_dw, first.bn1), *fc, *fold(first.conv_pw, first.bn2))
    got = depthwise_excite_project(*tensors, padding=1, activation="silu", squeeze_activation="silu", gate="sigmoid")
    assert_agrees(got, first(x), copy.deepcopy(first).double()(x.double()))


def test_the_documents_code_runs_and_is_the_examples(capsys: pytest.CaptureFixture[str]) -> None:
    """Its blocks one after another, which end with comparisons; functions stand in the example as they are."""
    source = (ROOT / "examples" / "efficientnet_block.py").read_text()
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "single-ops.md").read_text(), re.DOTALL)
    functions = [block[block.index("@torch.no_grad()") :] for block in blocks if "def " in block]
    assert len(functions) == 1
    assert functions[0] in source
    shared: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, "docs/single-ops.md", "exec"), shared)
    block, x = shared["block"], shared["x"]
    with torch.no_grad():
        expected = block.project(F.relu6(block.depthwise(F.relu6(block.expand(x))))) + x
    torch.testing.assert_close(shared["out"].detach(), expected, rtol=1e-4, atol=1e-4)
    said = capsys.readouterr().out
    assert "PyTorch <torch.utils.benchmark" in said
    assert "fused <torch.utils.benchmark" in said
