"""What GPUs can do, as their vendor rates them. No torch in here.

Ratings are at a clock that the vendor names; a card that boosts above it does a few percent more. Tensor cores are
counted dense and with sums in float32, though datasheets print the rate with sparsity first, twice that. Bandwidths of
L2 caches are mostly not published: each says what bounds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

_MEBI, _GIGA, _TERA = 1 << 20, 1e9, 1e12


@dataclass(frozen=True)
class Gpu:
    """name: what torch.cuda.get_device_name says. Bandwidths in bytes a second.

    tensor_flops: of the tensor cores by the dtype of the factors, dense, sums in float32; "tf32" is of float32 factors.
    fp32_flops, half_flops: of the CUDA cores in float32, and in float16, two numbers packed in a register; bfloat16 may
    be slower. All in operations a second, two a multiply-add.
    """

    name: str
    capability: tuple[int, int]
    sms: int
    memory_bandwidth: float
    l2_bytes: int
    l2_bandwidth: float
    tensor_flops: Mapping[str, float]
    fp32_flops: float
    half_flops: float

    @property
    def sm(self) -> int:
        """The compute capability as one number, 90 for 9.0."""
        return 10 * self.capability[0] + self.capability[1]

    def memory_seconds(self, read: int, written: int, *, fresh: int = 0, launches: int = 1) -> float:
        """The least time for launches to read and write so many bytes, each of its own tensors once.

        All bytes pass the L2 cache. As many as it holds may lie there before each launch and need no reading, but for
        `fresh` ones of those that are read; as many may stay there after it and need no writing.
        """
        spared = launches * self.l2_bytes
        streamed = fresh + max(0, read - fresh - spared) + max(0, written - spared)
        return max((read + written) / self.l2_bandwidth, streamed / self.memory_bandwidth)


def _tensor(half: float, tf32: float) -> Mapping[str, float]:
    """float16 and bfloat16 are as fast as each other on all of these."""
    return MappingProxyType({"float16": half * _TERA, "bfloat16": half * _TERA, "tf32": tf32 * _TERA})


GPUS: dict[str, Gpu] = {
    # NVIDIA H100 Tensor Core GPU Architecture (whitepaper, 2022), SXM5: 132 SMs, 50 MB, 989.4 and 494.7 TFLOPS dense,
    # 66.9 in float32, 133.8 in packed halves; datasheet: 3.35 TB/s. L2: not published; the A100's 5120 bytes a clock at
    # this chip's highest clock, 1.98 GHz: a bound.
    "h100": Gpu(
        name="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        sms=132,
        memory_bandwidth=3350 * _GIGA,
        l2_bytes=50 * _MEBI,
        l2_bandwidth=5120 * 1.98 * _GIGA,
        tensor_flops=_tensor(989.4, 494.7),
        fp32_flops=66.9 * _TERA,
        half_flops=133.8 * _TERA,
    ),
    # NVIDIA H200 datasheet (2024), SXM: 4.8 TB/s; the multiprocessors are the H100's, but PyTorch finds an L2 cache of
    # 60 MB. Its bandwidth: as the H100's.
    "h200": Gpu(
        name="NVIDIA H200",
        capability=(9, 0),
        sms=132,
        memory_bandwidth=4800 * _GIGA,
        l2_bytes=60 * _MEBI,
        l2_bandwidth=5120 * 1.98 * _GIGA,
        tensor_flops=_tensor(989.4, 494.7),
        fp32_flops=66.9 * _TERA,
        half_flops=133.8 * _TERA,
    ),
    # NVIDIA A100 Tensor Core GPU Architecture (whitepaper, 2020): 108 SMs, 312 and 156 TFLOPS dense, 19.5 in float32,
    # 78 in packed halves (39 in bfloat16), L2 of 40 MB that gives 5120 bytes a clock, 1.41 GHz; A100 80GB datasheet,
    # SXM: 2039 GB/s.
    "a100": Gpu(
        name="NVIDIA A100-SXM4-80GB",
        capability=(8, 0),
        sms=108,
        memory_bandwidth=2039 * _GIGA,
        l2_bytes=40 * _MEBI,
        l2_bandwidth=5120 * 1.41 * _GIGA,
        tensor_flops=_tensor(312, 156),
        fp32_flops=19.5 * _TERA,
        half_flops=78 * _TERA,
    ),
    # NVIDIA L4 datasheet (2023): 242 and 120 TFLOPS with sparsity, so 121 and 60 dense, 30.3 in float32, 300 GB/s; Ada
    # whitepaper: AD104, here 58 SMs, 48 MB, halves as fast as float32. L2: not published; half the RTX 4090's slices,
    # as it has half the memory partitions, at 2.04 GHz: a bound.
    "l4": Gpu(
        name="NVIDIA L4",
        capability=(8, 9),
        sms=58,
        memory_bandwidth=300 * _GIGA,
        l2_bytes=48 * _MEBI,
        l2_bandwidth=24 * 64 * 2.04 * _GIGA,
        tensor_flops=_tensor(121, 60),
        fp32_flops=30.3 * _TERA,
        half_flops=30.3 * _TERA,
    ),
    # NVIDIA Ada GPU Architecture (whitepaper, 2022): 128 SMs, 72 MB, 1008 GB/s, 165.2 TFLOPS dense with sums in float32
    # (330.3 in float16: GeForce halves the first), 82.6 in TF32, in float32 and in halves. L2: not published; what its
    # 48 slices can give, 64 bytes a clock each at 2.52 GHz: a bound, of which 1945.6 bytes a clock were measured
    # (smallscientist1/cuda_microbenchmark on GitHub).
    "rtx4090": Gpu(
        name="NVIDIA GeForce RTX 4090",
        capability=(8, 9),
        sms=128,
        memory_bandwidth=1008 * _GIGA,
        l2_bytes=72 * _MEBI,
        l2_bandwidth=48 * 64 * 2.52 * _GIGA,
        tensor_flops=_tensor(165.2, 82.6),
        fp32_flops=82.6 * _TERA,
        half_flops=82.6 * _TERA,
    ),
    # NVIDIA Jetson AGX Orin Series Technical Brief (2022), 64GB module at 1.3 GHz: 16 SMs, 4 MB, 204.8 GB/s, 5.3
    # TFLOPS in float32, 170 TOPS of int8 with sparsity on the GPU, so 42.5 TFLOPS dense in float16, half that in TF32.
    # Packed halves: not published; twice float32, a pair in each of its lanes: a bound. L2: not published; the 64 bytes
    # a clock that an SM of this generation takes, of all of them: a bound.
    "orin": Gpu(
        name="Orin",
        capability=(8, 7),
        sms=16,
        memory_bandwidth=204.8 * _GIGA,
        l2_bytes=4 * _MEBI,
        l2_bandwidth=16 * 64 * 1.3 * _GIGA,
        tensor_flops=_tensor(42.5, 21.25),
        fp32_flops=5.3 * _TERA,
        half_flops=2 * 5.3 * _TERA,
    ),
}
# Other names of the same. Jetsons name their chip alone, so that smaller modules are "Orin" too.
_OTHERS = {"rtx 4090": "rtx4090", "jetson agx orin": "orin", "agx orin": "orin"}


def find_gpu(name: str) -> Gpu | None:
    """The GPU of a short name ("h100"), or of what torch.cuda.get_device_name says; None for one not in the table.

    Only whole names match: a PCIe card or a laptop's chip is another GPU than its namesake.
    """
    wanted = " ".join(name.lower().split())
    names = {**_OTHERS, **{short: short for short in GPUS}, **{gpu.name.lower(): short for short, gpu in GPUS.items()}}
    return GPUS[names[wanted]] if wanted in names else None
