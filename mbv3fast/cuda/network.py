"""The whole network in one launch: csrc/network.cu."""

from __future__ import annotations

import contextlib
import ctypes
import functools

import torch
from torch import Tensor

from mbv3fast.cuda.launch import DTYPES, Kernel, call
from mbv3fast.cuda.library import check, library
from mbv3fast.cuda.structs import NetworkArgs
from mbv3fast.launching import Launch, announce, watched

KERNEL = Kernel("network", NetworkArgs)
THREADS = 256
_AXES = ("along_images", "along_channels", "along_rows", "along_columns")


def network(
    x: Tensor,
    weights: Tensor,
    stages: Tensor,
    chunks: Tensor,
    *,
    out: Tensor,
    factor: Tensor | None = None,
    shift: Tensor | None = None,
    stamps: Tensor | None = None,
    stage_count: int,
    chunk_count: int,
    cluster: int,
    clusters: int,
    slot: int,
    shared_bytes: int,
    pdl: bool = False,
) -> None:
    """out = the network that `stages` describe, of x, as `mbv3fast.cluster` cuts it.

    x [N, C, H, W] in any layout, of out's dtype, or of uint8, which becomes x * factor - shift by channel, both [C]
    float32; weights [bytes], stages [bytes of a Stage * stage_count], chunks [16 * chunk_count], all uint8; out
    [N, outputs] float16 or bfloat16; all on one device. cluster: blocks of one; clusters: of the launch.
    stamps [blocks, stage_count + 1] int64: takes when each block began the stages of its last image, and ended, by the
    clock of its multiprocessor.
    pdl: let it start while its predecessor drains. Raises KernelError for what the library refuses.
    """
    images, channels, height, width = x.shape
    reads = {"x": x, "weights": weights, "stages": stages, "chunks": chunks}
    if factor is not None and shift is not None:
        reads |= {"factor": factor, "shift": shift}
    sizes = {
        "images": images,
        "channels": channels,
        "height": height,
        "width": width,
        "outputs": out.shape[1],
        "takes_bytes": x.dtype == torch.uint8,
        "stage_count": stage_count,
        "chunk_count": chunk_count,
        "stage_bytes": stages.numel() // stage_count,
    }
    how = {"cluster": cluster, "clusters": clusters, "slot": slot, "shared_bytes": shared_bytes}
    writes = {"out": out} if stamps is None else {"out": out, "stamps": stamps}
    if watched():
        constants = {**how, "PDL": pdl, "num_warps": THREADS // 32}
        announce(Launch(KERNEL, cluster * clusters, reads, writes, sizes, constants))
    if out.numel() == 0 or out.is_meta:
        return
    args = NetworkArgs(
        **{name: tensor.data_ptr() for name, tensor in {**reads, **writes}.items()},
        **sizes,
        **how,
        **dict(zip(_AXES, x.stride(), strict=True)),
        weight_bytes=weights.numel(),
        dtype=DTYPES[out.dtype],
        overlapped=pdl,
    )
    call(KERNEL, args, out.device)


@functools.cache
def most_clusters(cluster: int, shared_bytes: int, dtype: torch.dtype, device: torch.device) -> int:
    """How many clusters of so many blocks run at once on a device; 0 where it has no such clusters."""
    count = ctypes.c_int32()
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        check(library().mbv3fast_network_clusters(cluster, shared_bytes, DTYPES[dtype], ctypes.byref(count)))
    return count.value
