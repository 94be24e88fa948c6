// What kernels are written in: memory, tensor cores and barriers by the same words for nvcc and for a CPU.
#pragma once

#ifdef MBV3FAST_EMULATED
#include "emulation/device.hpp"
#else
#include "gpu.cuh"
#endif

namespace mbv3fast {

// Tells the other blocks of the cluster what this one has written to them, and waits for what they have to tell.
__device__ __forceinline__ void sync_cluster() {
  arrive_cluster();
  wait_cluster();
}

enum class Activation { none = 0, relu = 1, hardswish = 2 };

// min(max(x, 0), 6), NaN staying NaN.
__device__ __forceinline__ float clamp6(float x) { return min_nan(max_nan(x, 0.0f), 6.0f); }

// Hard sigmoid, relu6(x + 3) / 6 (Howard et al. 2019, section 5.2).
__device__ __forceinline__ float hardsigmoid(float x) { return clamp6(x + 3.0f) * (1.0f / 6.0f); }

template <Activation A>
__device__ __forceinline__ float activate(float x) {
  if constexpr (A == Activation::relu) return max_nan(x, 0.0f);
  if constexpr (A == Activation::hardswish) return x * hardsigmoid(x);
  return x;
}

// Of many numbers, so that only one decision is taken for all.
template <int N>
__device__ __forceinline__ void activate_all(Activation which, float (&values)[N]) {
  if (which == Activation::relu) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = activate<Activation::relu>(values[i]);
  } else if (which == Activation::hardswish) {
#pragma unroll
    for (int i = 0; i < N; ++i) values[i] = activate<Activation::hardswish>(values[i]);
  }
}

__device__ __forceinline__ float activate(Activation which, float x) {
  if (which == Activation::relu) return activate<Activation::relu>(x);
  return which == Activation::hardswish ? activate<Activation::hardswish>(x) : x;
}

// The two numbers of a register.
template <class T>
__device__ __forceinline__ float2 unpack(std::uint32_t pair) {
  return {to_float(half_of<T>(pair, 0)), to_float(half_of<T>(pair, 1))};
}

// Eight 16-bit numbers, as 16-byte accesses move them.
template <class T>
struct Eight {
  uint4 bits;

  __device__ __forceinline__ void unpack(float (&values)[8]) const {
    const std::uint32_t pairs[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = to_float(half_of<T>(pairs[i / 2], i % 2));
  }

  static __device__ __forceinline__ Eight packed(const float (&values)[8]) {
    return {{pack<T>(values[0], values[1]), pack<T>(values[2], values[3]), pack<T>(values[4], values[5]),
             pack<T>(values[6], values[7])}};
  }
};

// 8, 2 or 1 of them, 16 bytes at a time where there are as many.
template <int V, class Floats>
__device__ __forceinline__ void load_floats(float (&values)[V], Floats from) {
  if constexpr (V == 8) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float4 four = load<float4>(from + 4 * half);
      values[4 * half] = four.x, values[4 * half + 1] = four.y;
      values[4 * half + 2] = four.z, values[4 * half + 3] = four.w;
    }
  } else if constexpr (V == 2) {
    const float2 pair = load<float2>(from);
    values[0] = pair.x, values[1] = pair.y;
  } else {
    values[0] = load<float>(from);
  }
}

// n / divisor by a product, for 0 <= n < 2^31 / divisor.
class Quotient {
 public:
  __device__ __forceinline__ explicit Quotient(int divisor) : divisor_(divisor), factor_((1u << 31) / divisor + 1) {}
  __device__ __forceinline__ int of(int n) const {
    return static_cast<int>((std::uint64_t{static_cast<std::uint32_t>(n)} * factor_) >> 31);
  }
  __device__ __forceinline__ int rest(int n) const { return n - of(n) * divisor_; }

 private:
  int divisor_;
  std::uint32_t factor_;
};

__host__ __device__ constexpr int least(int a, int b) { return a < b ? a : b; }
__host__ __device__ constexpr int most(int a, int b) { return a < b ? b : a; }
__host__ __device__ constexpr int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }
__host__ __device__ constexpr int ceil_div(int value, int divisor) { return (value + divisor - 1) / divisor; }

}  // namespace mbv3fast
