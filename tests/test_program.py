"""The fused network as a module: it exports, compiles and agrees. No kernel runs here, each op is its reference."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mbv3fast
from mbv3fast import Preprocess
from mbv3fast.fold import UnsupportedError
from tests.networks import calibrated_features, digit_tiles, photographs, trained_small
from tests.numerics import assert_agrees, by_module, exact, tensors


def images() -> Tensor:
    return digit_tiles()[:4]


def assert_right(got: Tensor, x: Tensor) -> None:
    (plain,), (truth,) = by_module(trained_small(), x), exact(trained_small(), x)
    assert_agrees(got, plain, truth)


def test_it_computes_what_the_model_does() -> None:
    with torch.inference_mode():
        assert_right(trained_small().fused()(images()), images())


def test_feature_maps() -> None:
    model, x = calibrated_features(), photographs(1, 64)
    with torch.inference_mode():
        outputs = tensors(model.fused()(x))
    for got, plain, truth in zip(outputs, by_module(model, x), exact(model, x), strict=True):
        assert_agrees(got, plain, truth)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_bytes(layout: str) -> None:
    model = copy.deepcopy(trained_small())
    model.preprocess = Preprocess(mean=(0.1, 0.5, 0.9), std=(0.2, 0.3, 0.4))
    x = torch.randint(0, 256, (2, 3, 40, 52), dtype=torch.uint8)
    given = x if layout == "NCHW" else x.permute(0, 2, 3, 1).contiguous()
    with torch.inference_mode():
        torch.testing.assert_close(model.fused()(given), model.reference_forward(x), rtol=1e-3, atol=1e-3)


def test_later_edits_do_not_reach_it() -> None:
    model = copy.deepcopy(trained_small())
    with torch.inference_mode():
        program = model.fused()
        before = program(images())
        model.features[3].project[0].weight.mul_(1.5)
        assert torch.equal(program(images()), before)


def test_export_keeps_the_ops_and_any_batch(tmp_path: Path) -> None:
    program = trained_small().fused()
    with torch.inference_mode():
        batch = {"x": {0: torch.export.Dim("batch", min=1, max=64)}}
        exported = torch.export.export(program, (images(),), dynamic_shapes=batch)
        torch.export.save(exported, tmp_path / "small.pt2")
        loaded = torch.export.load(tmp_path / "small.pt2").module()
        for count in (1, 3, 4):
            assert_right(loaded(images()[:count]), images()[:count])
    called = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert sum(name.startswith("mbv3fast.") for name in called) == len(program.plan.steps)
    assert not any("conv" in name for name in called if not name.startswith("mbv3fast."))


def test_compile_makes_one_graph() -> None:
    compiled = torch.compile(trained_small().fused(), backend="aot_eager", fullgraph=True)
    with torch.inference_mode():
        assert_right(compiled(images()), images())


def test_what_has_no_op_is_refused() -> None:
    model = mbv3fast.small()
    model.classifier[3] = torch.nn.Sequential(torch.nn.Linear(1024, 10), torch.nn.Sigmoid())
    with pytest.raises(UnsupportedError, match=r"classifier.3 is a Sequential"):
        model.eval().fused()
