"""Other runtimes compute the same network, or say why they can't."""

from __future__ import annotations

import functools
import pickle
import re

import pytest
import torch
from torch import Tensor

from benchmarks.contest import peers
from benchmarks.contest.cases import NetworkCase, Right
from benchmarks.contest.contenders import Contender
from mbv3fast.cli.options import DTYPES
from tests.numerics import Error, allowance

CPU = torch.device("cpu")
CONTENDERS = {contender.name: contender for contender in peers.OTHER_NETWORKS}
IN_JAX = [name for name in CONTENDERS if name.startswith("JAX")]
exported = functools.cache(peers._exported)  # two runtimes take the same


@pytest.fixture(autouse=True)
def _exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_exported", exported)


def able(name: str) -> Contender:
    contender = CONTENDERS[name]
    if contender.lacks("cpu"):
        pytest.skip(contender.lacks("cpu"))
    return contender


def computed(name: str, case: NetworkCase) -> Tensor:
    ready = able(name).prepare(case, CPU)
    out = ready.run()
    ready.wait(out)
    got = ready.fetch(out)
    assert got.device == CPU
    return got.double()


@functools.cache
def right(case: NetworkCase) -> Right:
    return case.right(CPU)


@functools.cache
def changed(case: NetworkCase, part: str) -> Tensor:
    """The truth of a network of which one tensor was changed a little."""
    network = case.network(CPU).double()
    with torch.inference_mode():
        network.get_parameter(part)[0].mul_(1.1)
        return network(case.images(CPU).double())


def close(got: Tensor, truth: Tensor) -> bool:
    return torch.allclose(got, truth, rtol=1e-4, atol=1e-5 * truth.abs().max().item())


@pytest.mark.parametrize(("variant", "size"), [("small", 75), pytest.param("large", 64, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CONTENDERS)
def test_same_network(name: str, variant: str, size: int) -> None:
    case = NetworkCase(variant, "float32", 2, size)
    got, truth = computed(name, case), right(case).truth
    assert close(got, truth)
    for part in (
        "features.0.0.weight",
        "features.4.block.2.fc2.bias",
        "features.6.block.1.0.weight",
        "classifier.3.bias",
    ):
        assert not close(got, changed(case, part)), part


@pytest.mark.parametrize(("name", "dtype"), list(zip(IN_JAX, ("float16", "bfloat16"), strict=True)))
def test_sixteen_bits(name: str, dtype: str) -> None:
    case = NetworkCase("small", dtype, 2, 64)
    truth, plain = right(case)
    assert Error.of(computed(name, case), truth).within(allowance(plain.to(DTYPES[dtype]), truth))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ONNX Runtime", "ONNX Runtime can't run float32 on cpu: .*INVALID"),
        ("OpenVINO", "no FP99 on this CPU: has .*FP32"),
    ],
)
def test_refused(name: str, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_exported", lambda _case, _dtype: b"no model")
    monkeypatch.setitem(peers._OPENVINO, "float32", ("FP99", "f99"))
    contender = able(name)
    with pytest.raises(RuntimeError, match=reason):
        contender.prepare(NetworkCase("small", "float32", 1, 64), CPU)


LACKS = {
    "JAX": "no CUDA plugin|jax can't be imported",
    "ONNX Runtime": "no CUDA provider: has .*CPUExecutionProvider|(onnxruntime|onnxscript) can't be imported",
    "OpenVINO": "no CUDA device",
    "TensorRT": "torch_tensorrt can't be imported",
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("name", LACKS)
def test_lacks_cuda(name: str) -> None:
    assert re.search(LACKS[name], CONTENDERS[name].lacks("cuda"))


@pytest.mark.parametrize("name", CONTENDERS)
def test_pickles(name: str) -> None:
    assert pickle.loads(pickle.dumps(CONTENDERS[name])) == CONTENDERS[name]
