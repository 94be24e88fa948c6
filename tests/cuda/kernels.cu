// Kernels that are wrong on purpose, each in one way, and a few that are right: for tests of the emulation.
#include <cstring>
#include <map>
#include <string>

#include "launch.cuh"

namespace mbv3fast {
namespace {

constexpr int kThreads = 64;

struct Params {
  GlobalPtr<float> out;     // [threads]
  GlobalPtr<const float> in;  // [threads]
};

using Kernel = void (*)(Params);

__device__ SharedPtr<float> floats() { return view<float>(shared_memory()); }
__device__ int me() { return static_cast<int>(threadIdx.x); }

// Each thread hands its number to the next through shared memory.
__global__ void right(Params p) {
  store(floats() + me(), load<float>(p.in + me()));
  __syncthreads();
  store(p.out + me(), load<float>(floats() + (me() + 1) % kThreads));
}

__global__ void reads_shared_out_of_bounds(Params p) {
  store(floats() + me(), 1.0f);
  __syncthreads();
  store(p.out + me(), load<float>(floats() + (me() + 1)));
}

__global__ void writes_shared_out_of_bounds(Params) { store(floats() + (me() - 1), 1.0f); }

__global__ void reads_global_out_of_bounds(Params p) { store(p.out + me(), load<float>(p.in + (me() + 1))); }

__global__ void writes_global_out_of_bounds(Params p) { store(p.out + (me() - 1), 1.0f); }

__global__ void misaligned_shared(Params p) {
  store(floats() + me(), 1.0f);
  __syncthreads();
  store(p.out + me(), load<float4>(floats() + me() / 8 * 2).x);
}

__global__ void misaligned_global(Params p) { store(p.out + me(), load<float4>(p.in + me() / 8).x); }

__global__ void reads_what_nothing_wrote(Params p) {
  if (me() % 2 == 0) store(floats() + me(), 1.0f);
  __syncthreads();
  store(p.out + me(), load<float>(floats() + me()));
}

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

__global__ void warp_that_is_not_whole(Params p) {
  float value = 1.0f;
  if (me() % 32 != 7) value = shuffle_xor(value, 1);
  store(p.out + me(), value);
}

__global__ void reads_before_the_barrier(Params p) {
  store(floats() + me(), 1.0f);
  store(p.out + me(), load<float>(floats() + me() / 32 * 32));
}

__global__ void writes_after_a_read(Params p) {
  store(floats() + me(), 1.0f);
  __syncthreads();
  const float value = load<float>(floats() + (me() + 1) % kThreads);
  store(floats() + me(), value);
  store(p.out + me(), value);
}

__global__ void writes_twice(Params p) {
  store(floats() + me() / 2, 1.0f);
  store(p.out + me(), 1.0f);
}

__global__ void orders_a_warp_alone(Params p) {
  store(floats() + me(), 1.0f);
  __syncwarp();
  store(p.out + me(), load<float>(floats() + (me() + 1) % kThreads));
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

__device__ void copy_in(Params p) {
  if (me() < kThreads / 4) copy_async(floats() + 4 * me(), p.in + 4 * me());
  commit_copies();
}

__global__ void right_copy(Params p) {
  copy_in(p);
  wait_for_copies<0>();
  __syncthreads();
  store(p.out + me(), load<float>(floats() + me()));
}

__global__ void copy_that_is_not_awaited(Params p) {
  copy_in(p);
  __syncthreads();
  store(p.out + me(), load<float>(floats() + me()));
}

__global__ void copy_awaited_by_its_thread_alone(Params p) {
  copy_in(p);
  wait_for_copies<0>();
  store(p.out + me(), load<float>(floats() + me()));
}

__global__ void awaits_too_few_copies(Params p) {
  copy_in(p);
  if (me() < kThreads / 4) copy_async(floats() + kThreads + 4 * me(), p.in + 4 * me());
  commit_copies();
  wait_for_copies<1>();
  __syncthreads();
  store(p.out + me(), load<float>(floats() + kThreads + me()));
}

__global__ void copy_over_what_is_read(Params p) {
  store(floats() + me(), 1.0f);
  __syncthreads();
  store(p.out + me(), load<float>(floats() + me()));
  copy_in(p);
}

__global__ void touches_activations_too_early(Params p) {
  store(p.out + me(), load<float>(p.in + me()));
  wait_for_predecessor();
}

__global__ void right_behind_its_predecessor(Params p) {
  wait_for_predecessor();
  store(p.out + me(), load<float>(p.in + me()));
}

// Clusters of two blocks: each reads what the other has written.
__device__ void write_own(Params p) { store(floats() + me(), load<float>(p.in + me())); }
__device__ float read_other() { return load<float>(peer(floats(), 1 - cluster_rank()) + me()); }

__global__ void right_cluster(Params p) {
  write_own(p);
  arrive_cluster();
  wait_cluster();
  const float value = read_other();
  arrive_cluster();
  wait_cluster();
  if (cluster_rank() == 0) store(p.out + me(), value);
}

__global__ void cluster_without_a_barrier(Params p) {
  arrive_cluster();
  wait_cluster();
  write_own(p);
  const float value = read_other();
  arrive_cluster();
  wait_cluster();
  store(p.out + me(), value);
}

__global__ void writes_after_it_arrived(Params p) {
  arrive_cluster();
  write_own(p);
  wait_cluster();
  const float value = read_other();
  arrive_cluster();
  wait_cluster();
  store(p.out + me(), value);
}

__global__ void ends_while_others_read(Params p) {
  write_own(p);
  arrive_cluster();
  wait_cluster();
  const float value = read_other();
  if (cluster_rank() == 0) store(p.out + me(), value);
}

__global__ void reads_a_block_that_may_not_run_yet(Params p) {
  write_own(p);
  __syncthreads();
  const float value = read_other();
  store(p.out + me(), value);
}

__global__ void waits_where_it_has_not_arrived(Params) { wait_cluster(); }

struct Case {
  Kernel kernel;
  int shared_floats = kThreads;
  unsigned cluster = 1;
  bool overlapped = false;
};

#define CASE(name, ...) {#name, {name, ##__VA_ARGS__}}
const std::map<std::string, Case> kCases = {
    CASE(right),
    CASE(reads_shared_out_of_bounds),
    CASE(writes_shared_out_of_bounds),
    CASE(reads_global_out_of_bounds),
    CASE(writes_global_out_of_bounds),
    CASE(misaligned_shared),
    CASE(misaligned_global),
    CASE(reads_what_nothing_wrote),
    CASE(barrier_that_a_thread_misses),
    CASE(barriers_at_two_places),
    CASE(warp_that_is_not_whole),
    CASE(reads_before_the_barrier),
    CASE(writes_after_a_read),
    CASE(writes_twice),
    CASE(orders_a_warp_alone),
    CASE(right_in_a_warp),
    CASE(right_copy),
    CASE(copy_that_is_not_awaited),
    CASE(copy_awaited_by_its_thread_alone),
    CASE(awaits_too_few_copies, 2 * kThreads),
    CASE(copy_over_what_is_read),
    CASE(touches_activations_too_early, kThreads, 1, true),
    CASE(right_behind_its_predecessor, kThreads, 1, true),
    CASE(right_cluster, kThreads, 2),
    CASE(cluster_without_a_barrier, kThreads, 2),
    CASE(writes_after_it_arrived, kThreads, 2),
    CASE(ends_while_others_read, kThreads, 2),
    CASE(reads_a_block_that_may_not_run_yet, kThreads, 2),
    CASE(waits_where_it_has_not_arrived, kThreads, 2),
    {"too_much_shared_memory", {right, 60 * 1024}},
    {"too_large_a_cluster", {right, kThreads, 17}},
};

// One warp: a product of fragments as they are given, register by register.
template <int A, int B>
struct MmaParams {
  GlobalPtr<const std::uint32_t> a, b;  // [32, A], [32, B]
  GlobalPtr<float> c;                   // [32, 4]
};

template <class T, int A, int B>
__global__ void multiply(MmaParams<A, B> p) {
  std::uint32_t a[A], b[B];
  float c[4];
  for (int i = 0; i < A; ++i) a[i] = load<std::uint32_t>(p.a + (me() * A + i));
  for (int i = 0; i < B; ++i) b[i] = load<std::uint32_t>(p.b + (me() * B + i));
  for (int i = 0; i < 4; ++i) c[i] = load<float>(p.c + (me() * 4 + i));
  mma<T>(c, a, b);
  for (int i = 0; i < 4; ++i) store(p.c + (me() * 4 + i), c[i]);
}

struct MatrixParams {
  GlobalPtr<const std::uint32_t> rows;  // [32, 4]: row i of what lane i points to
  GlobalPtr<std::uint32_t> registers;   // [32, 4]
};

__global__ void load_matrices(MatrixParams p) {
  const SharedPtr<std::uint32_t> rows = view<std::uint32_t>(shared_memory());
  for (int i = 0; i < 4; ++i) store(rows + (me() * 4 + i), load<std::uint32_t>(p.rows + (me() * 4 + i)));
  __syncthreads();
  std::uint32_t registers[4];
  ldmatrix(registers, rows + me() * 4);
  for (int i = 0; i < 4; ++i) store(p.registers + (me() * 4 + i), registers[i]);
}

}  // namespace
}  // namespace mbv3fast

using namespace mbv3fast;

extern "C" {

// The names of all cases, a line each.
MBV3FAST_API const char* test_cases(void) {
  static std::string names;
  names.clear();
  for (const auto& [name, unused] : kCases) names += name + "\n";
  return names.c_str();
}

// A case on `in` and `out` of 64 floats.
MBV3FAST_API int test_case(const char* name, float* out, const float* in) {
  return guarded(name, [&] {
    const Case& chosen = kCases.at(name);
    emulation::Config config;
    config.grid.x = config.cluster = chosen.cluster;
    config.block.x = kThreads;
    config.shared_bytes = chosen.shared_floats * sizeof(float);
    config.overlapped = chosen.overlapped;
    const Params params{activations(out, kThreads), activations(in, kThreads)};
    emulation::run(name, config, [&] { chosen.kernel(params); });
    return 0;
  });
}

MBV3FAST_API int test_mma16(int dtype, const std::uint32_t* a, const std::uint32_t* b, float* c) {
  return guarded("mma", [&] {
    const MmaParams<4, 2> p{weights(a, 128), weights(b, 64), weights(c, 128)};
    const Launch how{1, 32};
    return dtype == MBV3FAST_FLOAT16 ? launch<multiply<float16, 4, 2>>("mma", how, p)
                                     : launch<multiply<bfloat16, 4, 2>>("mma", how, p);
  });
}

MBV3FAST_API int test_mma8(int dtype, const std::uint32_t* a, const std::uint32_t* b, float* c) {
  return guarded("mma", [&] {
    const MmaParams<2, 1> p{weights(a, 64), weights(b, 32), weights(c, 128)};
    const Launch how{1, 32};
    return dtype == MBV3FAST_FLOAT16 ? launch<multiply<float16, 2, 1>>("mma", how, p)
                                     : launch<multiply<bfloat16, 2, 1>>("mma", how, p);
  });
}

MBV3FAST_API int test_ldmatrix(const std::uint32_t* rows, std::uint32_t* registers) {
  return guarded("ldmatrix", [&] {
    return launch<load_matrices>("ldmatrix", {1, 32, 512}, MatrixParams{weights(rows, 128), weights(registers, 128)});
  });
}

// Rounding: bits of `value` in a dtype, and back.
MBV3FAST_API std::uint32_t test_round(int dtype, float value) {
  return dtype == MBV3FAST_FLOAT16 ? round_to<float16>(value).bits : round_to<bfloat16>(value).bits;
}

MBV3FAST_API float test_float(int dtype, std::uint16_t bits) {
  return dtype == MBV3FAST_FLOAT16 ? to_float(float16{bits}) : to_float(bfloat16{bits});
}
}
