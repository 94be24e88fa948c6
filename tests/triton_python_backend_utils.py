"""What `examples/triton_server/model.py` uses of the module of this name that NVIDIA Triton Inference Server provides.

Names, arguments, errors and what is shared follow its Python backend (README.md, src/pb_tensor.cc,
src/resources/triton_python_backend_utils.py there); tensors are in the host's memory, and held by PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack, to_dlpack


class TritonModelException(Exception):  # noqa: N818 # as it is called there
    pass


class TritonError:
    """An error of one response."""

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


class Tensor:
    """A tensor with a name, which shares the memory of what it is made of."""

    def __init__(self, name: str, numpy_array: np.ndarray) -> None:
        if name == "":
            raise TritonModelException("Tensor name cannot be an empty string.")
        self._name, self._held = name, torch.from_numpy(np.ascontiguousarray(numpy_array))

    @classmethod
    def from_dlpack(cls, name: str, tensor: Any) -> Tensor:
        """Of a capsule, or of what has `__dlpack__`; C order is needed."""
        held = from_dlpack(tensor.__dlpack__(stream=None) if hasattr(tensor, "__dlpack__") else tensor)
        if not held.is_contiguous():
            raise TritonModelException("DLPack tensor is not contiguous. Only contiguous DLPack tensors are supported.")
        made = cls(name, np.empty(0))
        made._held = held
        return made

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._held.numpy()

    def to_dlpack(self) -> Any:
        """A capsule, which is read once."""
        return to_dlpack(self._held)


class InferenceRequest:
    """A client's request."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self._inputs = list(inputs)

    def inputs(self) -> list[Tensor]:
        return self._inputs


class InferenceResponse:
    """The answer to one request: tensors, or an error, beside which they are ignored."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self._output_tensors, self._error = list(output_tensors), error

    def output_tensors(self) -> list[Tensor]:
        return self._output_tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Tensor | None:
    return next((tensor for tensor in inference_request.inputs() if tensor.name() == name), None)
