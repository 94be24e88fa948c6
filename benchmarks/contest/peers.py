"""Other runtimes: the same network and weights in ONNX Runtime, OpenVINO, TensorRT and JAX, each in its best form.

None of them is needed until it is asked for, hence the imports inside functions.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.contest.cases import NetworkCase
from benchmarks.contest.contenders import Contender, Ready, gpu_only, importable, in_torch
from benchmarks.contest.jax_network import lacks_jax, prepare_jax, prepare_jax_products
from mbv3fast.cli.options import DTYPES
from mbv3fast.timing import waiter

_CPU = torch.device("cpu")
_CUDA = "CUDAExecutionProvider"
_UNREPORTED = patch.dict(os.environ, CI="true")  # importing OpenVINO tells its makers, unless in CI
_OPENVINO = {"float32": ("FP32", "f32"), "float16": ("FP16", "f16"), "bfloat16": ("BF16", "bf16")}


def _exported(case: NetworkCase, dtype: torch.dtype) -> bytes:
    """torchvision's network with the case's weights as an ONNX model that computes in `dtype`."""
    network, x = case.network(_CPU).to(dtype), case.images(_CPU).to(dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own deprecations
        program = torch.onnx.export(network, (x,), dynamo=True, verbose=False)
    assert program is not None
    return program.model_proto.SerializeToString()


def _lacks_onnxruntime(device: str) -> str:
    missing = importable("onnxruntime") or importable("onnxscript")
    if missing or device != "cuda":
        return missing
    providers = import_module("onnxruntime").get_available_providers()
    return "" if _CUDA in providers else f"this ONNX Runtime has no CUDA provider: has {', '.join(providers)}"


def _onnx_session(model: bytes, device: torch.device) -> Any:
    runtime = import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.log_severity_level = 3  # errors
    cuda = (_CUDA, {"device_id": device.index or 0, "use_tf32": 0})
    provider = cuda if device.type == "cuda" else ("CPUExecutionProvider", {})
    session = runtime.InferenceSession(model, options, providers=[provider])
    if session.get_providers()[0] != provider[0]:  # it falls back with a message only
        raise RuntimeError(f"{provider[0]} doesn't start")
    return session


def _onnxruntime(case: NetworkCase, device: torch.device) -> Ready:
    """On tensors of PyTorch, so that nothing is copied."""
    x, wait = case.images(device), waiter(device)
    kind = {"float32": 1, "float16": 10, "bfloat16": 16}[case.dtype]  # ONNX's numbers
    place = (device.type, device.index or 0, kind)
    try:
        session = _onnx_session(_exported(case, DTYPES[case.dtype]), device)
        (given,), (made,) = session.get_inputs(), session.get_outputs()
        out = torch.empty(made.shape, dtype=x.dtype, device=device)
        binding = session.io_binding()
        binding.bind_input(given.name, *place, tuple(x.shape), x.data_ptr())
        binding.bind_output(made.name, *place, tuple(out.shape), out.data_ptr())
        wait(x)  # its stream isn't PyTorch's
        session.run_with_iobinding(binding)  # times cuDNN's algorithms
    except Exception as error:  # it has a class for each of its codes
        reason = str(error).strip().partition("\n")[0]
        raise RuntimeError(f"ONNX Runtime can't run {case.dtype} on {device.type}: {reason}"[:400]) from error
    tensors = (x, out)  # `x` must live as long as its address is bound

    def run() -> Tensor:
        session.run_with_iobinding(binding)
        return tensors[1]

    return Ready(run, lambda out: out.cpu(), wait)


@_UNREPORTED
def _lacks_openvino(device: str) -> str:
    return "OpenVINO has no CUDA device" if device == "cuda" else importable("openvino") or importable("onnxscript")


@_UNREPORTED
def _openvino(case: NetworkCase, _device: torch.device) -> Ready:
    """A float32 model of the case's weights and images: OpenVINO computes 16-bit ones in float32 all the same, unless
    the hint says otherwise and the CPU can.
    """
    openvino = import_module("openvino")
    core, (kind, hint) = openvino.Core(), _OPENVINO[case.dtype]
    able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if kind not in able:
        raise RuntimeError(f"OpenVINO has no {kind} on this CPU: has {', '.join(able)}")
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": hint,
    }
    model = core.read_model(_exported(case, torch.float32))
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    x = openvino.Tensor(case.images(_CPU).float().numpy(), shared_memory=True)
    return Ready(
        run=lambda: request.infer(x, share_outputs=True)[0],
        fetch=lambda out: torch.tensor(out),
        wait=waiter(_CPU),
    )


def _lacks_tensorrt(device: str) -> str:
    return gpu_only(device) or importable("torch_tensorrt")


def _tensorrt(case: NetworkCase, device: torch.device) -> Ready:
    """In the model's own dtype: `enabled_precisions` are refused beside explicit types, which newer ones insist on."""
    tensorrt, x = import_module("torch_tensorrt"), case.images(device)
    options = {"use_explicit_typing": True, "disable_tf32": True}
    compiled = tensorrt.compile(case.network(device), ir="dynamo", inputs=[x], **options)
    return in_torch(lambda: compiled(x), device)


OTHER_NETWORKS: Sequence[Contender] = (
    Contender("JAX", lacks_jax, prepare_jax, tunes=True),
    Contender("JAX products", lacks_jax, prepare_jax_products, tunes=True),
    Contender("ONNX Runtime", _lacks_onnxruntime, _onnxruntime, tunes=True),
    Contender("OpenVINO", _lacks_openvino, _openvino),
    Contender("TensorRT", _lacks_tensorrt, _tensorrt, tunes=True),
)
