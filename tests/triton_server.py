"""Instances of examples/triton_server/model.py, started and asked as NVIDIA Triton Inference Server does it."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import triton_python_backend_utils as stub

ROOT = Path(__file__).parents[1]
EXAMPLE = ROOT / "examples" / "triton_server"
PAGE = ROOT / "docs" / "serving.md"
IMAGES, LOGITS = "INPUT__0", "OUTPUT__0"
CONFIG = {  # of `digits_folder`
    "input": [{"name": IMAGES, "data_type": "TYPE_UINT8", "dims": [64, 64, 3]}],
    "output": [{"name": LOGITS, "data_type": "TYPE_FP32", "dims": [10]}],
}


def started(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str = "CPU", device: str = "0") -> Any:
    """An instance of the folder's model.py, as the server makes one."""
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", stub)
    spec = importlib.util.spec_from_file_location("served_model", folder / "1" / "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.TritonPythonModel()
    about = {"model_name": folder.name, "model_repository": str(folder), "model_version": "1"}
    instance = {"model_instance_kind": kind, "model_instance_device_id": device, "model_config": json.dumps(CONFIG)}
    model.initialize({**about, **instance})
    return model


def request(images: Tensor, name: str = IMAGES) -> stub.InferenceRequest:
    return stub.InferenceRequest([stub.Tensor(name, images.numpy().copy())])


def answers(model: Any, requests: Sequence[stub.InferenceRequest]) -> list[Tensor | stub.TritonError]:
    """Each request's logits or error, by the rules of the server: a response for each, inputs gone thereafter."""
    responses = model.execute(requests)
    assert [type(response) for response in responses] == [stub.InferenceResponse] * len(requests)
    for tensor in (tensor for each in requests for tensor in each.inputs()):
        tensor.as_numpy()[:] = 0
    found: list[Tensor | stub.TritonError] = []
    for response in responses:
        if response.has_error():
            found.append(response.error())
        else:
            (logits,) = response.output_tensors()
            assert logits.name() == LOGITS
            found.append(torch.from_numpy(logits.as_numpy()))
    return found
