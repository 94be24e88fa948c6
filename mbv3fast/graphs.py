"""CUDA graphs of an engine: captured once a shape, replayed with one call, few kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from mbv3fast.torch_state import cuda_stream, fork_safe_lock, on_device, tf32_allowed

Outputs = tuple[Tensor, ...]
Run = Callable[[Tensor], Outputs]
CAPACITY = 16  # graphs of a model: each keeps its input and outputs, all of a stream share the memory between
_CAPTURING = fork_safe_lock()  # one capture at a time in the process


class Driver(Protocol):
    """What graphs ask of a GPU; the tests put another in its place."""

    def stream(self, device: torch.device) -> int:
        """The current stream."""

    def capturing(self) -> bool:
        """Whether the current stream is being captured, by somebody else."""

    def pool(self) -> Any:
        """New memory, for graphs that never run at once: what one computes may lie where another's outputs were."""

    def capture(self, run: Callable[[], Outputs], pool: Any) -> tuple[Callable[[], None], Outputs]:
        """Run once, capture a second run in memory of `pool`; the replay, and the outputs that it fills."""

    def settle(self, device: torch.device) -> None:
        """Wait until nothing on `device` may still use what is about to be freed."""


class CudaDriver:
    """A GPU through PyTorch."""

    def stream(self, device: torch.device) -> int:
        return cuda_stream(device)

    def capturing(self) -> bool:
        return torch.cuda.is_current_stream_capturing()

    def pool(self) -> Any:
        """With the stream that all its captures are made on, since PyTorch reuses memory on one stream alone."""
        return torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def capture(self, run: Callable[[], Outputs], pool: Any) -> tuple[Callable[[], None], Outputs]:
        handle, side = pool
        current = torch.cuda.current_stream()
        side.wait_stream(current)
        with torch.cuda.stream(side):
            run()  # compiles and loads the kernels, which a capture can't
        current.wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=handle, stream=side, capture_error_mode="thread_local"):
            outputs = run()
        return graph.replay, outputs

    def settle(self, device: torch.device) -> None:
        if not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize(device)


def capturing(x: Tensor) -> bool:
    """Whether the current stream of the GPU of `x` is being captured."""
    with on_device(x):
        return CudaDriver().capturing()


def settle(device: torch.device) -> None:
    """Wait for all that was launched on `device`."""
    CudaDriver().settle(device)


class _Key(NamedTuple):
    """What a captured graph is right for, beside its engine."""

    device: torch.device
    stream: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    channels_last: bool
    tf32: bool


class _Pool(NamedTuple):
    """The memory of a stream's graphs; `lock` keeps other threads from between a replay and the copy of its outputs,
    where another graph of the pool may write.
    """

    memory: Any
    lock: threading.Lock


class _Graph(NamedTuple):
    """A captured run between its own input and outputs."""

    x: Tensor
    replay: Callable[[], None]
    outputs: Outputs
    lock: threading.Lock


class GraphRunner:
    """Runs `run` through graphs, one for each device, stream, shape, dtype and layout; safe in several threads.

    The least recently used of more than `capacity` graphs is dropped. Graphs of one stream share a memory pool, since
    they never run at once; those of two streams don't. Where the caller is capturing a graph, `run` goes into that.
    """

    def __init__(self, run: Run, driver: Driver | None = None, capacity: int = CAPACITY) -> None:
        if capacity < 1:
            raise ValueError(f"capacity: got {capacity}, needs at least 1 graph")
        self._run = run
        self._driver = driver or CudaDriver()
        self._capacity = capacity
        self._graphs: OrderedDict[_Key, _Graph] = OrderedDict()
        self._pools: dict[tuple[torch.device, int], _Pool] = {}
        self._lock = fork_safe_lock()

    def __len__(self) -> int:
        """Graphs kept now."""
        return len(self._graphs)

    def __call__(self, x: Tensor) -> Outputs:
        """The outputs for `x`, which are the caller's own: the next call leaves them as they are."""
        return self._run(x) if self._driver.capturing() else _through(self._graph(x), x)

    def replay(self, x: Tensor) -> Outputs | None:
        """The outputs for `x` by a graph captured before; None without one, and nothing is launched then."""
        graph = None if self._driver.capturing() else self._kept(self._key(x))
        return None if graph is None else _through(graph, x)

    def bind(self, x: Tensor, out: Tensor) -> Callable[[], None]:
        """A replay that reads `x` where it lies and fills `out` with the one output; on one stream at a time."""

        def run() -> Outputs:
            (result,) = self._run(x)
            return (out.copy_(result),)

        with _CAPTURING, on_device(x):
            return self._driver.capture(run, self._driver.pool())[0]

    def _graph(self, x: Tensor) -> _Graph:
        key = self._key(x)
        graph = self._kept(key)
        if graph is None:
            with _CAPTURING:  # replays of other graphs go on meanwhile
                graph = self._kept(key)  # another thread may have captured it
                if graph is None:
                    graph = self._capture(x, key)
                    self._keep(key, graph)
        return graph

    def _key(self, x: Tensor) -> _Key:
        stream = self._driver.stream(x.device)
        return _Key(x.device, stream, x.shape, x.dtype, _is_channels_last(x), tf32_allowed())

    def _kept(self, key: _Key) -> _Graph | None:
        with self._lock:
            graph = self._graphs.get(key)
            if graph is not None:
                self._graphs.move_to_end(key)
            return graph

    def _keep(self, key: _Key, graph: _Graph) -> None:
        with self._lock:
            self._graphs[key] = graph
            if len(self._graphs) > self._capacity:
                self._driver.settle(key.device)
                self._graphs.popitem(last=False)

    def _capture(self, x: Tensor, key: _Key) -> _Graph:
        layout = torch.channels_last if key.channels_last else torch.contiguous_format
        where = (key.device, key.stream)
        if where not in self._pools:
            self._pools[where] = _Pool(self._driver.pool(), threading.Lock())
        memory, lock = self._pools[where]
        with torch.inference_mode(False), torch.no_grad():  # whose tensors may be written in either mode
            own = torch.empty_like(x, memory_format=layout).copy_(x)
            with lock:  # the first run is in the memory too
                replay, outputs = self._driver.capture(lambda: self._run(own), memory)
        return _Graph(own, replay, outputs, lock)


def _through(graph: _Graph, x: Tensor) -> Outputs:
    with graph.lock:
        graph.x.copy_(x)
        graph.replay()
        return tuple(map(torch.clone, graph.outputs))


def _is_channels_last(x: Tensor) -> bool:
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
