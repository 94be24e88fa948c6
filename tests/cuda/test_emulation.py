"""The emulation sees what is wrong with a kernel, whatever the order of its threads, and nothing where nothing is.

Each wrong kernel of memory.cuh, threads.cuh and clusters.cuh has one defect, and is told by the check that is for it.
"""

from __future__ import annotations

import ctypes
import re

import pytest
import torch
from torch import Tensor

from mbv3fast.cuda.compiled import SHARED

FAULT = 10002
SEEDS = range(16)
THREADS = 64
IN = torch.arange(float(THREADS))
OTHERS = torch.arange(THREADS)  # the numbers of threads

RIGHT = {
    "right": IN.roll(-1),
    "right_copy": IN,
    "right_copies": IN.flip(0) + 1000 * IN,
    "right_copy_of_nothing": IN * (OTHERS // 4 % 2 == 0),
    "right_behind_its_predecessor": IN,
    "right_in_a_warp": IN[OTHERS ^ 1],
    "right_shuffle": IN[OTHERS ^ 5],
    "right_ldmatrix": IN,
    "right_cluster": IN + 100,
    "right_push": IN + 100,
}
# Two accesses that no barrier orders: the later one is told, and either may be it.
EITHER = r"race: (read of what thread \d+ of block \d wrote|write to what thread \d+ of block \d read), no barrier"
READ_RACE = r"race: read of what thread \d+ of block 0 wrote, no barrier between: \d+ bytes at \d+ of shared memory"
WRITE_RACE = r"race: write to what thread \d+ of block 0 read, no barrier between: \d+ bytes at \d+ of shared memory"
TWO_WRITES = r"race: write to what thread \d+ of block 0 wrote, no barrier between"
MISSED = r"missed barrier: thread \(\d+, 0, 0\) of block \({block}, 0, 0\) waits at {place}, thread .* is at its end"
TWO = r"missed barrier: .* waits at {}.*, this one comes to {}"
WRONG = {
    "reads_shared_out_of_bounds": r"read out of bounds: 4 bytes at 256 of shared memory, which has 256",
    "writes_shared_out_of_bounds": r"write out of bounds: 4 bytes at -4 of shared memory, which has 256",
    "reads_global_out_of_bounds": r"read out of bounds: 4 bytes at 256 of a tensor of 256",
    "writes_global_out_of_bounds": r"write out of bounds: 4 bytes at -4 of a tensor of 256",
    "misaligned_shared": r"read misaligned: 16 bytes at (8|24|40|56) of shared memory, needs a multiple of 16",
    "misaligned_global": r"read misaligned: needs a multiple of 16",
    "reads_what_nothing_wrote": r"read of what nothing wrote: 4 bytes at \d+ of shared memory",
    "reads_a_word_half_written": r"read of what nothing wrote: 4 bytes at \d+ of shared memory",
    "writes_halves_of_a_word": TWO_WRITES,
    "races_for_half_a_word": READ_RACE,
    "copy_that_is_not_awaited": r"read of what a cp\.async still brings: 4 bytes at",
    "copy_that_is_not_committed": r"read of what a cp\.async still brings: 4 bytes at",
    "copy_awaited_by_its_thread_alone": READ_RACE,
    "awaits_too_few_copies": r"read of what a cp\.async still brings: 4 bytes at (2[5-9]\d|[345]\d\d) of shared memory",
    "copies_over_what_is_read": WRITE_RACE,
    "writes_to_what_a_copy_brings": r"write to what a cp\.async still brings: 4 bytes at",
    "copies_twice_to_a_place": r"write to what a cp\.async still brings: 16 bytes at",
    "copies_from_out_of_bounds": r"read out of bounds: 16 bytes at \d+ of a tensor of 256",
    "misaligned_copy": r"write misaligned: 16 bytes at \d+ of shared memory, needs a multiple of 16",
    "reads_activations_too_early": r"read of a tensor that the launch before may still use",
    "writes_activations_too_early": r"write of a tensor that the launch before may still use",
    "copies_activations_too_early": r"read of a tensor that the launch before may still use",
    "barrier_that_a_thread_misses": MISSED.format(block=0, place=r"__syncthreads of threads\.cuh:\d+"),
    "barriers_at_two_places": r"missed barrier: .* waits at __syncthreads of threads\.cuh:\d+, this one comes to __",
    "reads_before_the_barrier": READ_RACE,
    "writes_after_a_read": WRITE_RACE,
    "writes_twice": TWO_WRITES,
    "reads_behind_the_barrier_of_a_warp": EITHER,
    "writes_behind_the_barrier_of_a_warp": EITHER,
    "shuffle_that_a_lane_misses": MISSED.format(block=0, place=r"shuffle by 1 of case\.cuh:\d+"),
    "mma_that_a_lane_misses": MISSED.format(block=0, place=r"mma m16n8k16 f16 of threads\.cuh:\d+"),
    "mma_of_a_short_warp": r"mma m16n8k16 f16 of threads\.cuh:\d+ in a warp of 8 threads",
    "shuffle_beside_an_mma": TWO.format(r"(shuffle by 1|mma m16n8k16 f16) of \w+\.cuh:\d+", "(shuffle|mma)"),
    "shuffles_at_two_places": TWO.format(r"shuffle by 1 of threads\.cuh:\d+", r"shuffle by 1 of threads\.cuh:\d+"),
    "shuffles_by_two_masks": TWO.format("shuffle by [12]", "shuffle by [12]"),
    "shuffle_beyond_the_warp": "shuffle by 32, needs 1 to 31",
    "products_of_two_types": TWO.format("mma m16n8k16 b?f16", "mma m16n8k16 b?f16"),
    "matrices_of_two_numbers": TWO.format("ldmatrix x [12]", "ldmatrix x [12]"),
    "warps_barriers_at_two_places": TWO.format("__syncwarp", "__syncwarp"),
    "ldmatrix_of_rows_that_nothing_wrote": r"read of what nothing wrote: 16 bytes at",
    "misaligned_ldmatrix": r"read misaligned: 16 bytes at \d+ of shared memory, needs a multiple of 16",
    "ldmatrix_before_the_barrier": READ_RACE,
    "writes_after_an_ldmatrix": WRITE_RACE,
    "cluster_without_a_barrier": EITHER,
    "writes_after_it_arrived": EITHER,
    "reads_after_it_arrived": EITHER,
    "reads_again_after_it_arrived": EITHER,
    "reads_after_it_arrived_elsewhere": EITHER,
    "ends_while_others_read": r"the block ends while another of its cluster may still|of a block that has ended",
    "reads_a_block_that_may_not_run_yet": r"access to another block's shared memory before a cluster barrier",
    "reads_a_block_that_is_not_there": r"block 2 of a cluster of fewer",
    "waits_where_it_has_not_arrived": r"waits at the cluster's barrier where it has not arrived",
    "arrives_twice": r"arrives at the cluster's barrier twice",
    "barrier_of_a_cluster_that_a_thread_misses": MISSED.format(block=r"\d", place="the cluster's barrier"),
}


def run(kernels: ctypes.CDLL, name: str, seed: int) -> tuple[str, Tensor]:
    """What the emulation says of a kernel, nothing where it runs; its output."""
    out = torch.full((THREADS,), torch.nan)
    kernels.mbv3fast_emulate(90, seed)
    pointers = (ctypes.c_void_p(tensor.data_ptr()) for tensor in (out, IN))
    code = kernels.test_case(name.encode(), *pointers)
    assert code in (0, FAULT)
    return kernels.mbv3fast_error(code).decode() if code else "", out


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_kernel_is_caught(kernels: ctypes.CDLL, name: str) -> None:
    for seed in SEEDS:
        said, _ = run(kernels, name, seed)
        assert re.match(f"{name}: ({WRONG[name]})", said), f"seed {seed}: {said or 'nothing was caught'}"


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_kernel_runs(kernels: ctypes.CDLL, name: str) -> None:
    for seed in SEEDS:
        said, out = run(kernels, name, seed)
        assert not said
        assert torch.equal(out, RIGHT[name])


def test_no_kernel_is_left_out(kernels: ctypes.CDLL) -> None:
    assert sorted(kernels.test_cases().decode().split()) == sorted({**WRONG, **RIGHT})


def test_equal_seeds_give_equal_orders(kernels: ctypes.CDLL) -> None:
    """Which of two accesses comes first shows in the words."""
    first, again = ([run(kernels, "writes_twice", seed)[0] for seed in SEEDS] for _ in range(2))
    assert first == again
    assert len(set(first)) > 1


@pytest.mark.parametrize(("capability", "kilobytes"), SHARED.items())
def test_shared_memory_of_chips(kernels: ctypes.CDLL, capability: int, kilobytes: int) -> None:
    kernels.mbv3fast_emulate(capability, 0)
    most = 1024 * kilobytes
    assert kernels.test_launch(1, 32, most, 1) == 0
    assert kernels.test_launch(1, 32, most + 1, 1) == FAULT
    said = kernels.mbv3fast_error(FAULT).decode()
    assert said == f"nothing: launch: {most + 1} bytes of shared memory, a block of this chip has {most}"


@pytest.mark.parametrize(
    ("capability", "launch", "words"),
    [
        (80, (2, 32, 0, 2), "a cluster of 2 blocks in a grid of 2, this chip has up to 1"),
        (89, (8, 32, 0, 8), "a cluster of 8 blocks in a grid of 8, this chip has up to 1"),
        (90, (17, 32, 0, 17), "a cluster of 17 blocks in a grid of 17, this chip has up to 16"),
        (90, (9, 32, 0, 2), "a cluster of 2 blocks in a grid of 9, this chip has up to 16"),
        (90, (2, 32, 0, 0), "a cluster of 0 blocks in a grid of 2, this chip has up to 16"),
        (90, (1, 1025, 0, 1), "1025 threads a block, needs 1 to 1024"),
        (90, (1, 0, 0, 1), "0 threads a block, needs 1 to 1024"),
    ],
)
def test_launches_that_no_chip_does(
    kernels: ctypes.CDLL, capability: int, launch: tuple[int, int, int, int], words: str
) -> None:
    kernels.mbv3fast_emulate(capability, 0)
    assert kernels.test_launch(*launch) == FAULT
    assert kernels.mbv3fast_error(FAULT).decode() == f"nothing: launch: {words}"


@pytest.mark.parametrize("launch", [(16, 32, 0, 16), (3, 1024, 0, 1), (6, 33, 16, 3)])
def test_launches_at_the_limits(kernels: ctypes.CDLL, launch: tuple[int, int, int, int]) -> None:
    kernels.mbv3fast_emulate(90, 0)
    assert kernels.test_launch(*launch) == 0
