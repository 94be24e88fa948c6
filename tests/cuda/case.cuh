// What the kernels of these tests share: a block of 64 threads, or two in a cluster; a float of `in` and `out` for each.
#pragma once

#include <map>
#include <string>

#include "launch.cuh"

namespace mbv3fast {
namespace {

constexpr int kThreads = 64;

struct Params {
  GlobalPtr<float> out;       // [threads]
  GlobalPtr<const float> in;  // [threads]
};

struct Case {
  void (*kernel)(Params);
  int shared_floats = kThreads;
  unsigned cluster = 1;
  bool overlapped = false;
  int threads = kThreads;
};

using Cases = std::map<std::string, Case>;
#define CASE(name, ...) {#name, {name, ##__VA_ARGS__}}

__device__ SharedPtr<float> floats() { return view<float>(shared_memory()); }
__device__ SharedPtr<std::uint16_t> halves() { return view<std::uint16_t>(shared_memory()); }
__device__ int me() { return static_cast<int>(threadIdx.x); }

// All lanes of a warp have come here; what they wrote, nobody may read for that: no memory is ordered.
__device__ void gather_warp() { shuffle_xor(0.0f, 1); }

// Shared memory that all may read.
__device__ void fill() {
  store(floats() + me(), 1.0f);
  __syncthreads();
}

}  // namespace
}  // namespace mbv3fast
