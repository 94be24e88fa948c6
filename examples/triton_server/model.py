"""A model for the Python backend of NVIDIA Triton Inference Server: runs the `model.pt2` that lies beside this file.

`make_repository.py` puts it there. It needs PyTorch of the version that compiled the package, and nothing of mbv3fast.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import triton_python_backend_utils as pb_utils  # the server's own, which it puts on the path
from torch import Tensor
from torch.utils.dlpack import from_dlpack

DTYPES = {
    "TYPE_UINT8": torch.uint8,
    "TYPE_FP32": torch.float32,
    "TYPE_FP16": torch.float16,
    "TYPE_BF16": torch.bfloat16,
}


class TritonPythonModel:
    """One instance of the model, which has a process and a device of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the package onto the device of this instance."""
        config = json.loads(args["model_config"])
        (images,), (logits,) = config["input"], config["output"]
        self.images_name, self.logits_name = images["name"], logits["name"]
        self.shape, self.dtype = tuple(map(int, images["dims"])), DTYPES[images["data_type"]]
        index = int(args["model_instance_device_id"]) if args["model_instance_kind"] == "GPU" else -1
        self.device = torch.device("cpu") if index < 0 else torch.device("cuda", index)
        if index >= 0:
            torch.cuda.set_device(self.device)  # whose current stream the package runs on
        file = Path(args["model_repository"], args["model_version"], "model.pt2")
        self.package: Any = torch._inductor.aoti_load_package(str(file), device_index=index)
        compiled_for = self.package.get_metadata()["AOTI_DEVICE_KEY"]
        if compiled_for != self.device.type:
            raise pb_utils.TritonModelException(f"{file} is for {compiled_for}, this instance is on {self.device.type}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer a batch of requests, in their order, by one run; a wrong one gets an error of its own."""
        responses: list[Any] = [None] * len(requests)
        images: dict[int, Tensor] = {}
        for index, request in enumerate(requests):
            try:
                images[index] = self._images(request)
            except Exception as error:  # of whatever kind, it is this request's alone
                responses[index] = _failure(error, pb_utils.TritonError.INVALID_ARG)
        if images:
            for index, response in zip(images, self._answers(list(images.values())), strict=True):
                responses[index] = response
        return responses

    def finalize(self) -> None:
        """Let go of the package and its weights."""
        del self.package

    def _images(self, request: Any) -> Tensor:
        """A request's images where the server has them. The package itself would read past the end of smaller ones."""
        tensor = pb_utils.get_input_tensor_by_name(request, self.images_name)
        if tensor is None:
            raise ValueError(f"{self.images_name}: is missing")
        images = from_dlpack(tensor.to_dlpack())
        if images.dtype != self.dtype or images.shape[1:] != self.shape or not len(images):
            needs = f"{self.dtype} [N, {', '.join(map(str, self.shape))}]"
            raise ValueError(f"{self.images_name}: got {images.dtype} {list(images.shape)}, needs {needs}")
        return images

    def _answers(self, images: list[Tensor]) -> list[Any]:
        """A response to each request's images."""
        counts = [len(part) for part in images]
        try:
            logits = self._run(images, counts)
        except Exception as error:  # of whatever kind: the instance goes on
            return [_failure(error, pb_utils.TritonError.INTERNAL) for _ in images]
        tensors = (pb_utils.Tensor.from_dlpack(self.logits_name, part) for part in logits.split(counts))
        return [pb_utils.InferenceResponse([tensor]) for tensor in tensors]

    @torch.inference_mode()
    def _run(self, images: list[Tensor], counts: list[int]) -> Tensor:
        """Logits of all images in the host's memory, float32: the server sorts no narrower ones into classes."""
        batch = torch.empty((sum(counts), *self.shape), dtype=self.dtype, device=self.device)
        for place, part in zip(batch.split(counts), images, strict=True):
            place.copy_(part)  # the one copy: to the device, beside the others, aligned as kernels expect it
        logits: Tensor = self.package(batch)
        return logits.float().cpu()


def _failure(error: Exception, code: int) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{type(error).__name__}: {error}", code))
