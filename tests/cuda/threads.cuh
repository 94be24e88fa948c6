// Threads that meet, or don't: barriers, and what warps do together. Each wrong kernel has one defect alone.
#pragma once

#include "case.cuh"

namespace mbv3fast {
namespace {

__global__ void barrier_that_a_thread_misses(Params p) {
  if (me() != 5) __syncthreads();
  store(p.out + me(), 1.0f);
}

__global__ void barriers_at_two_places(Params p) {
  if (me() < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  store(p.out + me(), 1.0f);
}

__global__ void reads_before_the_barrier(Params p) {
  fill();
  store(floats() + me(), 2.0f);
  gather_warp();
  store(p.out + me(), load<float>(floats() + (me() ^ 1)));
}

__global__ void writes_after_a_read(Params) {
  fill();
  const float value = load<float>(floats() + (me() ^ 1));
  gather_warp();
  store(floats() + me(), value);
}

__global__ void writes_twice(Params) { store(floats() + me() / 2, 1.0f); }

// What other warps wrote or read, __syncwarp doesn't order.
__global__ void reads_behind_the_barrier_of_a_warp(Params p) {
  fill();
  store(floats() + me(), 2.0f);
  __syncwarp();
  store(p.out + me(), load<float>(floats() + (me() ^ 32)));
}

__global__ void writes_behind_the_barrier_of_a_warp(Params p) {
  fill();
  store(p.out + me(), load<float>(floats() + (me() ^ 32)));
  __syncwarp();
  store(floats() + me(), 2.0f);
}

// Two lanes of a warp, between which __syncwarp is enough.
__global__ void right_in_a_warp(Params p) {
  store(floats() + me(), load<float>(p.in + me()));
  __syncwarp();
  const float value = load<float>(floats() + (me() ^ 1));
  __syncwarp();
  store(floats() + me(), value);
  store(p.out + me(), value);
}

__global__ void right_shuffle(Params p) { store(p.out + me(), shuffle_xor(load<float>(p.in + me()), 5)); }

__global__ void shuffle_that_a_lane_misses(Params) {
  if (me() % 32 != 7) gather_warp();
}

__device__ void multiply_zeros() {
  float c[4] = {};
  const std::uint32_t a[4] = {}, b[2] = {};
  mma<float16>(c, a, b);
}

__global__ void mma_that_a_lane_misses(Params) {
  if (me() % 32 != 7) multiply_zeros();
}

__global__ void mma_of_a_short_warp(Params) { multiply_zeros(); }

__global__ void shuffle_beside_an_mma(Params) {
  if (me() % 2 == 0) {
    gather_warp();
  } else {
    multiply_zeros();
  }
}

// A warp does together what stands at one place alone, in one form.
__global__ void shuffles_at_two_places(Params) {
  if (me() % 2 == 0) {
    shuffle_xor(0.0f, 1);
  } else {
    shuffle_xor(0.0f, 1);
  }
}

__global__ void shuffles_by_two_masks(Params) { shuffle_xor(0.0f, 1 + me() % 2); }

__global__ void shuffle_beyond_the_warp(Params) { shuffle_xor(0.0f, 32); }

__global__ void products_of_two_types(Params) {
  float c[4] = {};
  const std::uint32_t a[4] = {}, b[2] = {};
  me() % 2 == 0 ? mma<float16>(c, a, b) : mma<bfloat16>(c, a, b);
}

__global__ void matrices_of_two_numbers(Params) {
  fill();
  std::uint32_t one[1], two[2];
  me() % 2 == 0 ? ldmatrix(one, floats()) : ldmatrix(two, floats());
}

__global__ void warps_barriers_at_two_places(Params) {
  if (me() % 2 == 0) {
    __syncwarp();
  } else {
    __syncwarp();
  }
}

// Rows of 16 bytes of one matrix for each warp: eight lanes point to them.
__device__ SharedPtr<float> row() { return floats() + (me() / 32 * 32 + me() % 8 * 4); }

__device__ void load_matrix(Params p, SharedPtr<float> from) {
  std::uint32_t registers[1];
  ldmatrix(registers, from);
  store(p.out + me(), registers[0]);
}

__global__ void right_ldmatrix(Params p) {
  store(floats() + me(), load<float>(p.in + me()));
  __syncthreads();
  load_matrix(p, row());
}

__global__ void ldmatrix_of_rows_that_nothing_wrote(Params p) {
  if (me() % 32 / 4 != 3) store(floats() + me(), 1.0f);
  __syncthreads();
  load_matrix(p, row());
}

__global__ void misaligned_ldmatrix(Params p) {
  fill();
  load_matrix(p, me() % 8 == 0 ? row() + 1 : row());
}

__global__ void ldmatrix_before_the_barrier(Params p) {
  fill();
  store(floats() + me(), 2.0f);
  load_matrix(p, row());
}

__global__ void writes_after_an_ldmatrix(Params p) {
  fill();
  load_matrix(p, row());
  store(floats() + me(), 2.0f);
}

const Cases kThreadsThatMeet = {
    CASE(barrier_that_a_thread_misses),
    CASE(barriers_at_two_places),
    CASE(reads_before_the_barrier),
    CASE(writes_after_a_read),
    CASE(writes_twice),
    CASE(reads_behind_the_barrier_of_a_warp),
    CASE(writes_behind_the_barrier_of_a_warp),
    CASE(right_in_a_warp),
    CASE(right_shuffle),
    CASE(shuffle_that_a_lane_misses),
    CASE(mma_that_a_lane_misses),
    CASE(mma_of_a_short_warp, kThreads, 1, false, 40),
    CASE(shuffle_beside_an_mma),
    CASE(shuffles_at_two_places),
    CASE(shuffles_by_two_masks),
    CASE(shuffle_beyond_the_warp),
    CASE(products_of_two_types),
    CASE(matrices_of_two_numbers),
    CASE(warps_barriers_at_two_places),
    CASE(right_ldmatrix),
    CASE(ldmatrix_of_rows_that_nothing_wrote),
    CASE(misaligned_ldmatrix),
    CASE(ldmatrix_before_the_barrier),
    CASE(writes_after_an_ldmatrix),
};

}  // namespace
}  // namespace mbv3fast
