// The words that kernels are written in (device.cuh), for nvcc. emulation/device.hpp has the same words for the CPU.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <type_traits>

namespace mbv3fast {

using float16 = __half;
using bfloat16 = __nv_bfloat16;

template <class T>
using GlobalPtr = T*;
template <class T>
using SharedPtr = T*;

template <class V, class T>
__device__ __forceinline__ V load(const T* from) {
  return *reinterpret_cast<const V*>(from);
}

template <class V, class T>
__device__ __forceinline__ void store(T* to, const V& value) {
  *reinterpret_cast<V*>(to) = value;
}

// Tensors of so many elements: `weights` are those that nothing writes while the network runs, `activations` what the
// launch before may still write.
template <class T>
GlobalPtr<T> weights(T* data, std::int64_t) {
  return data;
}

template <class T>
GlobalPtr<T> activations(T* data, std::int64_t) {
  return data;
}

__device__ __forceinline__ SharedPtr<std::uint8_t> shared_memory() {
  extern __shared__ __align__(16) std::uint8_t memory[];
  return memory;
}

template <class T, class U>
__device__ __forceinline__ SharedPtr<T> view(SharedPtr<U> memory) {
  return reinterpret_cast<T*>(memory);
}

__device__ __forceinline__ float to_float(float16 value) { return __half2float(value); }
__device__ __forceinline__ float to_float(bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ __forceinline__ T round_to(float value) {
  if constexpr (std::is_same_v<T, float16>) {
    return __float2half_rn(value);
  } else {
    return __float2bfloat16_rn(value);
  }
}

// The larger and the smaller, NaN if `a` is.
__device__ __forceinline__ float max_nan(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float most;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(most) : "f"(a), "f"(b));
  return most;
#else
  return a < b ? b : a;
#endif
}

__device__ __forceinline__ float min_nan(float a, float b) {
#if __CUDA_ARCH__ >= 800
  float least;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(least) : "f"(a), "f"(b));
  return least;
#else
  return a > b ? b : a;
#endif
}

// Two in a register, the first in its lower half.
template <class T>
__device__ __forceinline__ std::uint32_t pack(float low, float high) {
  std::uint32_t pair;
  if constexpr (std::is_same_v<T, float16>) {
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  } else {
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
  }
  return pair;
}

template <class T>
__device__ __forceinline__ T half_of(std::uint32_t pair, int which) {
  const std::uint16_t bits = static_cast<std::uint16_t>(pair >> (16 * which));
  return reinterpret_cast<const T&>(bits);
}

// mma.sync.m16n8k16 and m16n8k8, row.col, float32 sums.
template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const std::uint32_t (&a)[4], const std::uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, float16>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
}

template <class T>
__device__ __forceinline__ void mma(float (&c)[4], const std::uint32_t (&a)[2], const std::uint32_t (&b)[1]) {
  if constexpr (std::is_same_v<T, float16>) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  } else {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(b[0]));
  }
}

__device__ __forceinline__ std::uint32_t shared_address(const void* pointer) {
  return static_cast<std::uint32_t>(__cvta_generic_to_shared(pointer));
}

// ldmatrix of N 8x8 matrices of 16 bits: lane i holds the address of row i % 8 of matrix i / 8.
template <int N, class T>
__device__ __forceinline__ void ldmatrix(std::uint32_t (&r)[N], SharedPtr<T> row) {
  static_assert(N == 1 || N == 2 || N == 4);
  const std::uint32_t address = shared_address(row);
  if constexpr (N == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r[0]) : "r"(address) : "memory");
  } else if constexpr (N == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  }
}

template <class V>
__device__ __forceinline__ V shuffle_xor(V value, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, value, mask);
}

// cp.async of 16 bytes, or of 16 zeros where not `wanted`.
template <class T, class U>
__device__ __forceinline__ void copy_async(T* to, const U* from, bool wanted = true) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(wanted ? 16 : 0)
               : "memory");
}

__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Until at most `Left` of the groups committed last are still on their way.
template <int Left>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Left) : "memory");
}

// Programmatic dependent launch: before a kernel touches activations, and once its successor may start.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ __forceinline__ void start_successor() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// A multiprocessor's own clock.
__device__ __forceinline__ std::int64_t now() { return clock64(); }

// Clusters of blocks (sm_90): arrive_cluster tells the others what this thread did before, wait_cluster waits until all
// have arrived. Older chips have none, and a block is a cluster by itself.
__device__ __forceinline__ unsigned cluster_rank() {
  unsigned rank = 0;
#if __CUDA_ARCH__ >= 900
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return rank;
}

__device__ __forceinline__ void arrive_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
#endif
}

__device__ __forceinline__ void wait_cluster() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#else
  __syncthreads();
#endif
}

// The same place in the shared memory of another block of the cluster.
template <class T>
__device__ __forceinline__ SharedPtr<T> peer(SharedPtr<T> memory, [[maybe_unused]] unsigned rank) {
#if __CUDA_ARCH__ >= 900
  std::uint64_t there;
  asm("mapa.u64 %0, %1, %2;" : "=l"(there) : "l"(memory), "r"(rank));
  return reinterpret_cast<T*>(there);
#else
  return memory;
#endif
}

}  // namespace mbv3fast
