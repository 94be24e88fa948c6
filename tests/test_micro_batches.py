"""Large batches run in parts, so that activations keep within memory."""

from __future__ import annotations

import pytest
import torch

import mbv3fast
from mbv3fast import engine as engine_module
from mbv3fast.engine import Engine
from tests.served import SHAPE, TOLERANCE, assert_right, subject

pytest.importorskip("triton")
pytestmark = pytest.mark.usefixtures("gpu")


def test_large_batches_run_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = subject(micro_batch=2)
    x = torch.randn(5, *SHAPE[1:])
    sizes: list[int] = []
    forward = Engine._forward
    monkeypatch.setattr(Engine, "_forward", lambda self, part: (sizes.append(len(part)), forward(self, part))[1])
    assert_right(model, x)
    assert sizes[:3] == [2, 2, 1]


def test_parts_keep_activations_within_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = subject()
    with torch.inference_mode():
        service = model.service(x)
    assert service is not None
    one = service.engine.plan.peak_bytes((1, 3, 224, 224))
    assert service.engine.images_at_once((10_000, 3, 224, 224)) == engine_module.MEMORY // one
    monkeypatch.setattr(engine_module, "MEMORY", 1)
    assert service.engine.images_at_once((8, 3, 224, 224)) == 1


@pytest.mark.parametrize("micro_batch", [0, -1])
def test_a_part_has_an_image(micro_batch: int) -> None:
    with pytest.raises(ValueError, match=f"^micro_batch: got {micro_batch}, needs at least 1"):
        mbv3fast.small(micro_batch=micro_batch)


def test_feature_maps_run_at_once() -> None:
    model = mbv3fast.small(features_only=True, micro_batch=1, backend="triton").eval()
    x = torch.randn(SHAPE)
    with torch.inference_mode():
        service = model.service(x)
        assert service is not None
        assert service.engine.images_at_once(SHAPE) == SHAPE[0]
        for got, wanted in zip(model(x), model.reference_forward(x), strict=True):
            torch.testing.assert_close(got, wanted, **TOLERANCE)
