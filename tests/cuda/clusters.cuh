// Clusters of two blocks, and their barrier. Each wrong kernel has one defect alone.
#pragma once

#include "case.cuh"

namespace mbv3fast {
namespace {

__device__ void write_own(float value) { store(floats() + me(), value); }
__device__ SharedPtr<float> others() { return peer(floats(), 1 - cluster_rank()); }
__device__ float read_other() { return load<float>(others() + me()); }

// Each reads what the other has written.
__global__ void right_cluster(Params p) {
  write_own(load<float>(p.in + me()) + 100 * cluster_rank());
  sync_cluster();
  const float value = read_other();
  sync_cluster();
  if (cluster_rank() == 0) store(p.out + me(), value);
}

// Each writes into the other, which reads what it has then.
__global__ void right_push(Params p) {
  sync_cluster();
  store(others() + me(), load<float>(p.in + me()) + 100 * cluster_rank());
  sync_cluster();
  if (cluster_rank() == 0) store(p.out + me(), load<float>(floats() + me()));
}

__global__ void cluster_without_a_barrier(Params) {
  write_own(1.0f);
  sync_cluster();
  write_own(2.0f);
  read_other();
  sync_cluster();
}

__global__ void writes_after_it_arrived(Params) {
  write_own(1.0f);
  sync_cluster();
  arrive_cluster();
  write_own(2.0f);
  wait_cluster();
  read_other();
  sync_cluster();
}

__global__ void reads_after_it_arrived(Params p) {
  write_own(1.0f);
  sync_cluster();
  arrive_cluster();
  const float value = load<float>(floats() + me());
  wait_cluster();
  store(others() + me(), value);
  sync_cluster();
  store(p.out + me(), value);
}

// All threads read a word, one of them again when it has arrived, which others' first reads may come after.
__global__ void reads_again_after_it_arrived(Params) {
  write_own(1.0f);
  sync_cluster();
  load<float>(floats());
  arrive_cluster();
  if (me() == 5) load<float>(floats());
  wait_cluster();
  if (me() == 0) store(others(), 2.0f);
  sync_cluster();
}

// As before, but in another block, while all threads of the one that writes have read too, and met.
__global__ void reads_after_it_arrived_elsewhere(Params) {
  write_own(1.0f);
  sync_cluster();
  const SharedPtr<float> word = peer(floats(), 0);
  arrive_cluster();
  if (cluster_rank() == 1 || me() == 0) load<float>(word);
  if (cluster_rank() == 1) __syncthreads();
  wait_cluster();
  if (cluster_rank() == 1 && me() == 0) store(word, 2.0f);
  sync_cluster();
}

__global__ void ends_while_others_read(Params) {
  write_own(1.0f);
  sync_cluster();
  read_other();
}

__global__ void reads_a_block_that_may_not_run_yet(Params) {
  write_own(1.0f);
  __syncthreads();
  read_other();
}

__global__ void reads_a_block_that_is_not_there(Params) {
  write_own(1.0f);
  sync_cluster();
  load<float>(peer(floats(), 2) + me());
  sync_cluster();
}

__global__ void waits_where_it_has_not_arrived(Params) { wait_cluster(); }

__global__ void arrives_twice(Params) {
  arrive_cluster();
  sync_cluster();
}

__global__ void barrier_of_a_cluster_that_a_thread_misses(Params) {
  if (me() != 5) sync_cluster();
}

const Cases kClusters = {
    CASE(right_cluster, kThreads, 2),
    CASE(right_push, kThreads, 2),
    CASE(cluster_without_a_barrier, kThreads, 2),
    CASE(writes_after_it_arrived, kThreads, 2),
    CASE(reads_after_it_arrived, kThreads, 2),
    CASE(reads_again_after_it_arrived, kThreads, 2),
    CASE(reads_after_it_arrived_elsewhere, kThreads, 2),
    CASE(ends_while_others_read, kThreads, 2),
    CASE(reads_a_block_that_may_not_run_yet, kThreads, 2),
    CASE(reads_a_block_that_is_not_there, kThreads, 2),
    CASE(waits_where_it_has_not_arrived, kThreads, 2),
    CASE(arrives_twice, kThreads, 2),
    CASE(barrier_of_a_cluster_that_a_thread_misses, kThreads, 2),
};

}  // namespace
}  // namespace mbv3fast
