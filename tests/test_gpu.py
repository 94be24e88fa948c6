"""On a real GPU: what the interpreter and the stand-ins can't show. `pytest -m gpu`; skipped without one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mbv3fast.backend import lacks_cuda, lacks_network
from mbv3fast.cuda.library import lacks_library
from mbv3fast.disagreement import disagreement
from mbv3fast.ops import OPS
from tests.networks import calibrated_features, calibrated_large, digit_tiles, photographs, trained_small
from tests.numerics import Network, assert_engine_agrees
from tests.stand_ins import in_threads

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NETWORKS: dict[str, Callable[[], Network]] = {"large": calibrated_large, "small": trained_small}
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _exact_float32() -> Any:
    """PyTorch's side of a comparison without TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


def on_gpu(model: Network, dtype: torch.dtype = torch.float32, **named: Any) -> Any:
    own = copy.deepcopy(model).to(GPU, dtype)
    for name, value in {"backend": "triton", **named}.items():
        setattr(own, name, value)
    return own.eval()


def images(count: int, size: int = 224, seed: int = 0) -> Tensor:
    return photographs(min(count, 8), size, seed).repeat(-(-count // 8), 1, 1, 1)[:count].to(GPU)


@pytest.fixture(params=["triton", "cuda"])
def backend(request: pytest.FixtureRequest) -> str:
    """Each that is there; the CUDA kernels need their library built."""
    lack = lacks_library(GPU) if request.param == "cuda" else ""
    if lack:
        pytest.skip(lack)
    return request.param


def skip_what_it_does_not_take(backend: str, dtype: torch.dtype) -> None:
    lack = lacks_cuda(GPU, dtype) if backend == "cuda" else ""
    if lack:
        pytest.skip(lack)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("batch", [1, 2, 3, 8, 16, 64, 128])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_step_agrees_with_its_reference(backend: str, name: str, dtype: torch.dtype, batch: int) -> None:
    skip_what_it_does_not_take(backend, dtype)
    model = on_gpu(NETWORKS[name](), dtype, backend=backend)
    for size in (224, 97):
        assert disagreement(model.plan(), (batch, 3, size, size), GPU) == ""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("batch", "size"), [(1, 224), (3, 97), (8, 224), (1, 320), (17, 64), (128, 224)])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_networks(backend: str, name: str, dtype: torch.dtype, batch: int, size: int, cuda_graphs: bool) -> None:
    skip_what_it_does_not_take(backend, dtype)
    model = on_gpu(NETWORKS[name](), dtype, backend=backend, cuda_graphs=cuda_graphs)
    assert_engine_agrees(model, images(batch, size).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("batch", "size"), [(1, 224), (3, 97), (17, 64), (128, 160)])
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_the_network_in_one_launch(name: str, dtype: torch.dtype, batch: int, size: int, cuda_graphs: bool) -> None:
    """And its bits are the same again."""
    lack = lacks_network(GPU, dtype)
    if lack:
        pytest.skip(lack)
    model = on_gpu(NETWORKS[name](), dtype, backend="auto", plan_name="network", cuda_graphs=cuda_graphs)
    x = images(batch, size).to(dtype)
    assert_engine_agrees(model, x)
    with torch.inference_mode():
        first = model(x)
        for _ in range(100):
            assert torch.equal(model(x), first)


@pytest.mark.parametrize("name", NETWORKS)
def test_cuda_kernels_give_the_same_bits_again_and_in_graphs(name: str) -> None:
    lack = lacks_library(GPU)
    if lack:
        pytest.skip(lack)
    model, x = on_gpu(NETWORKS[name](), torch.float16, backend="cuda"), images(3).half()
    launched = on_gpu(NETWORKS[name](), torch.float16, backend="cuda", cuda_graphs=False)
    with torch.inference_mode():
        first = model(x)
        for _ in range(200):
            assert torch.equal(model(x), first)
        assert torch.equal(launched(x), first)


def test_auto_chooses_the_kernels_after_its_check(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MBV3FAST_CACHE", str(tmp_path))
    model, x = on_gpu(calibrated_large(), torch.float16, backend="auto"), images(1).half()
    with torch.inference_mode():
        decision = model.explain(x)
    assert decision.backend == "triton", decision.reason
    assert_engine_agrees(model, x)


def test_feature_maps() -> None:
    assert_engine_agrees(on_gpu(calibrated_features(), torch.float16), images(2).half())


def test_the_digits_are_read_as_the_reference_reads_them() -> None:
    model, x = on_gpu(trained_small(), torch.float16), digit_tiles().to(GPU).half()
    with torch.inference_mode():
        assert torch.equal(model(x).argmax(1), model.reference_forward(x).argmax(1))


@pytest.mark.parametrize("layout", ["NCHW", "channels_last", "strided", "bytes NCHW", "bytes NHWC"])
def test_layouts_of_the_input(layout: str) -> None:
    model, x = on_gpu(calibrated_large()), images(2, 128)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "strided":
        x = torch.stack([x, x], -1)[..., 0]
    elif layout.startswith("bytes"):
        x = torch.randint(0, 256, x.shape, dtype=torch.uint8, device=GPU)
        x = x.permute(0, 2, 3, 1).contiguous() if layout.endswith("NHWC") else x
    with torch.inference_mode():
        torch.testing.assert_close(model(x), model.reference_forward(x), rtol=1e-3, atol=1e-3)


def test_ten_thousand_calls_give_the_same_bits_and_keep_the_memory() -> None:
    model, x, other = on_gpu(trained_small(), torch.float16), images(1).half(), images(2, 160).half()
    with torch.inference_mode():
        first, second = model(x), model(other)
        wrong = torch.zeros((), dtype=torch.int64, device=GPU)
        torch.cuda.synchronize()
        memory = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        for _ in range(5_000):  # two resolutions in turn, counted where they are, so that nothing waits
            wrong += (model(x) != first).any()
            wrong += (model(other) != second).any()
        assert wrong.item() == 0
    assert torch.cuda.memory_allocated() <= memory[0] + 2**20
    assert torch.cuda.memory_reserved() <= memory[1] + 2**21


def test_shapes_share_memory() -> None:
    """Graphs of a stream take what the largest of them does."""
    model = on_gpu(calibrated_large(), torch.float16)
    sizes = []
    with torch.inference_mode():
        for batch in (64, 63, 62, 61):
            model(images(batch).half())
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            sizes.append(torch.cuda.memory_reserved())
    inputs = 64 * 3 * 224 * 224 * 2
    assert sizes[-1] - sizes[0] <= 3 * (inputs + 2**22)  # each keeps its input, and less than the 128 MB of activations


def test_results_are_the_callers_own() -> None:
    model, x = on_gpu(trained_small(), torch.float16), images(1).half()
    with torch.inference_mode():
        first = model(x)
        kept = first.clone()
        model(torch.zeros_like(x))
    assert torch.equal(first, kept)


def test_streams_do_not_disturb_each_other() -> None:
    model, xs = on_gpu(trained_small(), torch.float16), [images(2, 128, seed).half() for seed in range(4)]
    with torch.inference_mode():
        wanted = [model(x).clone() for x in xs]
        streams = [torch.cuda.Stream() for _ in xs]
        torch.cuda.synchronize()
        got: list[list[Tensor]] = [[] for _ in xs]
        for _ in range(50):
            for stream, x, results in zip(streams, xs, got, strict=True):
                with torch.cuda.stream(stream):
                    results.append(model(x))
        torch.cuda.synchronize()
    for results, right in zip(got, wanted, strict=True):
        assert all(torch.equal(result, right) for result in results)


@pytest.mark.parametrize("shared", [False, True])
def test_threads_do_not_disturb_each_other(shared: bool) -> None:
    """Each on a stream of its own, or all on one, where graphs share memory."""
    stream = torch.cuda.Stream() if shared else None
    model, xs = on_gpu(trained_small(), torch.float16), [images(1 + seed % 2, 128, seed).half() for seed in range(4)]
    with torch.inference_mode():
        wanted = [model(x).clone() for x in xs]

    def work(index: int) -> None:
        with torch.inference_mode(), torch.cuda.stream(stream or torch.cuda.Stream()):
            for _ in range(50):
                assert torch.equal(model(xs[index]), wanted[index])

    in_threads(work, len(xs))


def test_new_weights_are_seen_behind_a_replay() -> None:
    model, x = on_gpu(trained_small()), images(2, 128)
    with torch.inference_mode():
        model(x)
    with torch.no_grad():
        model.features[3].project[0].weight.mul_(1.5)
    assert_engine_agrees(model, x)


def test_an_input_elsewhere_is_refused_behind_a_replay() -> None:
    model, x = on_gpu(trained_small()), images(1, 128)
    with torch.inference_mode():
        model(x)
        with pytest.raises(ValueError, match=r"^x: is on cpu, the model on cuda:0"):
            model(x.cpu())


def test_inside_somebody_elses_graph() -> None:
    model, x = on_gpu(trained_small(), torch.float16), images(1, 128).half()
    with torch.inference_mode():
        wanted = model(x).clone()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = model(x)
        out.zero_()
        graph.replay()
        torch.cuda.synchronize()
    assert torch.equal(out, wanted)


def test_bound_tensors() -> None:
    model, x = on_gpu(trained_small(), torch.float16), images(1).half()
    out = torch.empty(1, 10, dtype=torch.float16, device=GPU)
    bound = model.bind(x, out)
    for seed in range(3):
        x.copy_(images(1, 224, seed).half())
        bound()
        with torch.inference_mode():
            assert torch.equal(out, model(x))


def test_compiled_code_calls_the_engine() -> None:
    model, x = on_gpu(trained_small(), torch.float16), images(2, 128).half()
    compiled = torch.compile(lambda x: model(x) + 1, fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x) + 1)


@pytest.mark.parametrize("name", sorted(OPS))
def test_ops_take_no_part_of_a_tensor_for_the_whole(name: str) -> None:
    """Every op of a plan again, with its first input a slice of something larger."""
    plan = on_gpu(trained_small(), torch.float16).plan()
    step = next((step for step in plan.steps if step.op == name), None)
    if step is None:
        pytest.skip("not in this plan")
    shapes = plan.shapes((2, 3, 64, 64))
    kinds = {arg.name: arg.kind for arg in OPS[name].spec.args}
    inputs = {
        argument: torch.randn(*shapes[value], 2, device=GPU).to(
            torch.float32 if kinds[argument] == "float32" else plan.dtype
        )[..., 0]
        for argument, value in step.inputs.items()
    }
    tensors = [(inputs | dict(step.tensors)).get(arg.name) for arg in OPS[name].spec.args]
    got = OPS[name](*tensors, **step.options)
    whole = [None if t is None else t.clone(memory_format=torch.contiguous_format) for t in tensors]
    again = OPS[name](*whole, **step.options)
    for one, other in zip(*(r if isinstance(r, tuple) else (r,) for r in (got, again)), strict=True):
        assert torch.equal(one, other)


def test_a_second_gpu() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    model = on_gpu(trained_small(), torch.float16).to("cuda:1")
    with torch.inference_mode():
        assert model(images(1).half().to("cuda:1")).device.index == 1
