"""A package of our own ops, which a reader without a GPU runs in Triton's interpreter."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from mbv3fast import ExportError
from mbv3fast.deploy import export
from mbv3fast.deploy.check import run_afresh
from tests.networks import digit_tiles, short_small
from tests.numerics import assert_agrees, by_module, exact

if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1: `make test-kernels`", allow_module_level=True)
pytest.importorskip("triton.runtime.interpreter")


@pytest.mark.slow
def test_a_package_of_ops(tmp_path: Path) -> None:
    model, x = short_small(), digit_tiles()[:2, :, :32, :32].contiguous()
    made = export(model, tmp_path / "small.pt2", size=(32, 32), backend="triton")
    assert made.contents == "torch.ops.mbv3fast.*, which a reader has by `import mbv3fast.ops`"
    with pytest.raises(ExportError, match=r"^\.pt2: a fresh process can't run the file: .*mbv3fast"):
        run_afresh(made.path, [x])
    ((got,),) = run_afresh(made.path, [x], ("mbv3fast.ops",))
    assert_agrees(got, by_module(model, x)[0], exact(model, x)[0])
    assert got.dtype == torch.float32
