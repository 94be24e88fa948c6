// Right and wrong accesses to memory, and copies that land later. Each wrong kernel has one defect alone.
#pragma once

#include "case.cuh"

namespace mbv3fast {
namespace {

// Each thread hands its number to the next through shared memory.
__global__ void right(Params p) {
  store(floats() + me(), load<float>(p.in + me()));
  __syncthreads();
  store(p.out + me(), load<float>(floats() + (me() + 1) % kThreads));
}

__global__ void reads_shared_out_of_bounds(Params p) {
  fill();
  store(p.out + me(), load<float>(floats() + (me() + 1)));
}

__global__ void writes_shared_out_of_bounds(Params) { store(floats() + (me() - 1), 1.0f); }

__global__ void reads_global_out_of_bounds(Params p) { store(p.out + me(), load<float>(p.in + (me() + 1))); }

__global__ void writes_global_out_of_bounds(Params p) { store(p.out + (me() - 1), 1.0f); }

__global__ void misaligned_shared(Params p) {
  fill();
  store(p.out + me(), load<float4>(floats() + me() / 8 * 2).x);
}

__global__ void misaligned_global(Params p) { store(p.out + me(), load<float4>(p.in + me() / 8).x); }

__global__ void reads_what_nothing_wrote(Params p) {
  if (me() % 2 == 0) store(floats() + me(), 1.0f);
  __syncthreads();
  store(p.out + me(), load<float>(floats() + me()));
}

__global__ void reads_a_word_half_written(Params p) {
  store(halves() + 2 * me(), std::uint16_t{1});
  __syncthreads();
  store(p.out + me(), load<float>(floats() + me()));
}

// What two halves of a word are written by, a GPU doesn't mind. The emulation tells words apart alone, and no kernel of
// ours does it.
__global__ void writes_halves_of_a_word(Params p) {
  store(halves() + me(), std::uint16_t{1});
  store(p.out + me(), 1.0f);
}

__global__ void races_for_half_a_word(Params p) {
  fill();
  store(halves() + 2 * me(), std::uint16_t{1});
  gather_warp();
  store(p.out + me(), load<float>(floats() + (me() ^ 1)));
}

// Copies the first `count` floats.
__device__ void copy_in(Params p, int to = 0, int count = kThreads) {
  if (4 * me() < count) copy_async(floats() + (to + 4 * me()), p.in + 4 * me());
  commit_copies();
}

__global__ void right_copy(Params p) {
  copy_in(p);
  wait_for_copies<0>();
  __syncthreads();
  store(p.out + me(), load<float>(floats() + me()));
}

// The first of two copies is used while the second is on its way.
__global__ void right_copies(Params p) {
  copy_in(p);
  copy_in(p, kThreads);
  wait_for_copies<1>();
  __syncthreads();
  const float first = load<float>(floats() + (kThreads - 1 - me()));
  wait_for_copies<0>();
  __syncthreads();
  store(p.out + me(), first + 1000 * load<float>(floats() + (kThreads + me())));
}

// Zeros, where a copy is not wanted; `from` is then not read.
__global__ void right_copy_of_nothing(Params p) {
  if (me() < kThreads / 4) copy_async(floats() + 4 * me(), p.in + 4 * me(), me() % 2 == 0);
  commit_copies();
  wait_for_copies<0>();
  __syncthreads();
  store(p.out + me(), load<float>(floats() + me()));
}

__global__ void copy_that_is_not_awaited(Params p) {
  copy_in(p);
  __syncthreads();
  store(p.out + me(), load<float>(floats() + me()));
}

// By waiting for groups that are committed.
__global__ void copy_that_is_not_committed(Params p) {
  if (me() < kThreads / 4) copy_async(floats() + 4 * me(), p.in + 4 * me());
  wait_for_copies<0>();
  __syncthreads();
  store(p.out + me(), load<float>(floats() + me()));
}

__global__ void copy_awaited_by_its_thread_alone(Params p) {
  if (me() >= 32) return;
  copy_in(p, 0, 32);
  wait_for_copies<0>();
  gather_warp();
  store(p.out + me(), load<float>(floats() + me()));
}

__global__ void awaits_too_few_copies(Params p) {
  copy_in(p);
  copy_in(p, kThreads);
  wait_for_copies<1>();
  __syncthreads();
  store(p.out + me(), load<float>(floats() + (kThreads + me())));
}

__global__ void copies_over_what_is_read(Params p) {
  fill();
  if (me() >= 32) return;
  store(p.out + me(), load<float>(floats() + me()));
  gather_warp();
  copy_in(p, 0, 32);
}

__global__ void writes_to_what_a_copy_brings(Params p) {
  copy_in(p);
  if (me() < kThreads / 4) store(floats() + 4 * me(), 1.0f);
}

__global__ void copies_twice_to_a_place(Params p) {
  copy_in(p);
  copy_in(p);
}

__global__ void copies_from_out_of_bounds(Params p) { copy_async(floats() + me() % 16 * 4, p.in + 4 * me()); }

__global__ void misaligned_copy(Params p) { copy_async(floats() + 4 * (me() % 15) + 2, p.in); }

__global__ void reads_activations_too_early(Params p) {
  store(floats() + me(), load<float>(p.in + me()));
  wait_for_predecessor();
}

__global__ void writes_activations_too_early(Params p) { store(p.out + me(), 1.0f); }

__global__ void copies_activations_too_early(Params p) {
  copy_in(p);
  wait_for_predecessor();
}

__global__ void right_behind_its_predecessor(Params p) {
  wait_for_predecessor();
  store(p.out + me(), load<float>(p.in + me()));
}

const Cases kMemory = {
    CASE(right),
    CASE(reads_shared_out_of_bounds),
    CASE(writes_shared_out_of_bounds),
    CASE(reads_global_out_of_bounds),
    CASE(writes_global_out_of_bounds),
    CASE(misaligned_shared),
    CASE(misaligned_global),
    CASE(reads_what_nothing_wrote),
    CASE(reads_a_word_half_written),
    CASE(writes_halves_of_a_word),
    CASE(races_for_half_a_word),
    CASE(right_copy),
    CASE(right_copies, 2 * kThreads),
    CASE(right_copy_of_nothing),
    CASE(copy_that_is_not_awaited),
    CASE(copy_that_is_not_committed),
    CASE(copy_awaited_by_its_thread_alone),
    CASE(awaits_too_few_copies, 2 * kThreads),
    CASE(copies_over_what_is_read),
    CASE(writes_to_what_a_copy_brings),
    CASE(copies_twice_to_a_place),
    CASE(copies_from_out_of_bounds),
    CASE(misaligned_copy),
    CASE(reads_activations_too_early, kThreads, 1, true),
    CASE(writes_activations_too_early, kThreads, 1, true),
    CASE(copies_activations_too_early, kThreads, 1, true),
    CASE(right_behind_its_predecessor, kThreads, 1, true),
};

}  // namespace
}  // namespace mbv3fast
