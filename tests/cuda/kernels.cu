// Kernels for tests of the emulation: right and wrong ones by name, and the tensor cores' words by themselves.
#include "clusters.cuh"
#include "memory.cuh"
#include "threads.cuh"

namespace mbv3fast {
namespace {

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

template <int A, int B>
int run_multiply(int dtype, const std::uint32_t* a, const std::uint32_t* b, float* c) {
  return guarded("mma", [&] {
    const MmaParams<A, B> p{weights(a, 32 * A), weights(b, 32 * B), weights(c, 128)};
    const Launch how{1, 32};
    return dtype == MBV3FAST_FLOAT16 ? launch<multiply<float16, A, B>>("mma", how, p)
                                     : launch<multiply<bfloat16, A, B>>("mma", how, p);
  });
}

struct MatrixParams {
  GlobalPtr<const std::uint32_t> rows;  // [32, 4]: what lane i points to, if it is asked
  GlobalPtr<std::uint32_t> registers;   // [32, matrices]
};

template <int N>
__global__ void load_matrices(MatrixParams p) {
  const SharedPtr<std::uint32_t> rows = view<std::uint32_t>(shared_memory());
  for (int i = 0; i < 4; ++i) store(rows + (me() * 4 + i), load<std::uint32_t>(p.rows + (me() * 4 + i)));
  __syncthreads();
  std::uint32_t registers[N];
  ldmatrix(registers, me() < 8 * N ? rows + me() * 4 : rows + 1);  // other lanes may point anywhere
  for (int i = 0; i < N; ++i) store(p.registers + (me() * N + i), registers[i]);
}

}  // namespace
}  // namespace mbv3fast

using namespace mbv3fast;

extern "C" {

// The names of all cases, a line each.
MBV3FAST_API const char* test_cases(void) {
  static std::string names;
  names.clear();
  for (const Cases* cases : {&kMemory, &kThreadsThatMeet, &kClusters}) {
    for (const auto& [name, unused] : *cases) names += name + "\n";
  }
  return names.c_str();
}

// A case on `in` and `out` of 64 floats.
MBV3FAST_API int test_case(const char* name, float* out, const float* in) {
  return guarded(name, [&] {
    const Cases& cases = kMemory.count(name) != 0 ? kMemory : kClusters.count(name) != 0 ? kClusters : kThreadsThatMeet;
    const Case& chosen = cases.at(name);
    emulation::Config config;
    config.grid.x = config.cluster = chosen.cluster;
    config.block.x = chosen.threads;
    config.shared_bytes = chosen.shared_floats * sizeof(float);
    config.overlapped = chosen.overlapped;
    const Params params{activations(out, kThreads), activations(in, kThreads)};
    emulation::run(name, config, [&] { chosen.kernel(params); });
    return 0;
  });
}

// A launch of a kernel that does nothing.
MBV3FAST_API int test_launch(int blocks, int threads, int64_t shared_bytes, int cluster) {
  return guarded("nothing", [&] {
    emulation::Config config;
    config.grid.x = blocks;
    config.block.x = threads;
    config.shared_bytes = shared_bytes;
    config.cluster = cluster;
    emulation::run("nothing", config, [] {});
    return 0;
  });
}

MBV3FAST_API int test_mma(int k, int dtype, const std::uint32_t* a, const std::uint32_t* b, float* c) {
  return k == 16 ? run_multiply<4, 2>(dtype, a, b, c) : run_multiply<2, 1>(dtype, a, b, c);
}

MBV3FAST_API int test_ldmatrix(int matrices, const std::uint32_t* rows, std::uint32_t* registers) {
  return guarded("ldmatrix", [&] {
    const MatrixParams p{weights(rows, 128), weights(registers, 32 * matrices)};
    const Launch how{1, 32, 512};
    if (matrices == 1) return launch<load_matrices<1>>("ldmatrix", how, p);
    return matrices == 2 ? launch<load_matrices<2>>("ldmatrix", how, p) : launch<load_matrices<4>>("ldmatrix", how, p);
  });
}

// Numbers rounded to a dtype, as bits, and back.
MBV3FAST_API void test_round(int dtype, int64_t count, const float* values, std::uint16_t* bits) {
  for (int64_t i = 0; i < count; ++i) {
    bits[i] = dtype == MBV3FAST_FLOAT16 ? round_to<float16>(values[i]).bits : round_to<bfloat16>(values[i]).bits;
  }
}

MBV3FAST_API void test_float(int dtype, int64_t count, const std::uint16_t* bits, float* values) {
  for (int64_t i = 0; i < count; ++i) {
    values[i] = dtype == MBV3FAST_FLOAT16 ? to_float(float16{bits[i]}) : to_float(bfloat16{bits[i]});
  }
}
}
