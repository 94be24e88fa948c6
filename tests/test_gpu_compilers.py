"""On a real GPU: packages that hold our kernels, and networks that torch.compile makes of our ops. `pytest -m gpu`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mbv3fast.deploy import export
from mbv3fast.deploy.check import run_afresh
from tests.networks import calibrated_large, digit_tiles, photographs, trained_small
from tests.numerics import Network, assert_agrees, by_module, exact

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda", 0)


def on_gpu(model: Network, dtype: torch.dtype = torch.float16) -> Any:
    return copy.deepcopy(model).to(GPU, dtype).eval()


def check(got: Tensor, model: Any, x: Tensor) -> None:
    (plain,), (truth,) = by_module(model, x), exact(model, x)
    assert_agrees(got.to(GPU), plain, truth)


@pytest.mark.parametrize("batch", [1, 64])
def test_packages_hold_our_kernels(batch: int, tmp_path: Path) -> None:
    """Configured for one batch, a package runs any, in a process that never imports this package."""
    model = on_gpu(trained_small())
    made = export(model, tmp_path / "small.pt2", size=(64, 64), batch=batch, backend="triton")
    assert "launches of our kernels" in made.contents
    inputs = [digit_tiles()[:count].to(GPU).half() for count in (1, 2, 40)]
    for x, (got,) in zip(inputs, run_afresh(made.path, inputs), strict=True):
        check(got, model, x)


def test_a_package_of_the_large_takes_bytes(tmp_path: Path) -> None:
    made = export(on_gpu(calibrated_large()), tmp_path / "large.pt2", uint8=True, backend="triton")
    assert made.difference is not None


def test_packages_of_pytorchs_operators(tmp_path: Path) -> None:
    made = export(on_gpu(trained_small(), torch.float32), tmp_path / "small.pt2", size=(64, 64), backend="torch")
    assert made.contents.startswith("PyTorch's operators")


def test_a_package_captured(tmp_path: Path) -> None:
    model, x = on_gpu(trained_small()), digit_tiles()[:1].to(GPU).half()
    export(model, tmp_path / "small.pt2", size=(64, 64), backend="triton")
    package = torch._inductor.aoti_load_package(str(tmp_path / "small.pt2"))
    with torch.inference_mode():
        package(x)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = package(x)
        x.copy_(digit_tiles()[3:4])
        graph.replay()
        torch.cuda.synchronize()
        check(out, model, x)


def test_compile_sees_the_kernels() -> None:
    model, x = on_gpu(calibrated_large()), photographs(2, 224).to(GPU).half()
    compiled = torch.compile(model.fused(), fullgraph=True)
    with torch.inference_mode():
        check(compiled(x), model, x)
