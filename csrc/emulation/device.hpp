// The words that kernels are written in (csrc/device.cuh), on the CPU: every access to memory is checked, and threads meet
// as a GPU's do. `gpu.cuh` has the same words for nvcc.
#pragma once

#include <cmath>
#include <cstring>
#include <type_traits>

#include "machine.hpp"
#include "numbers.hpp"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(bytes) alignas(bytes)
#define __grid_constant__
#define threadIdx (::mbv3fast::emulation::self().index)
#define blockIdx (::mbv3fast::emulation::self().block->index)
#define blockDim (::mbv3fast::emulation::config().block)
#define gridDim (::mbv3fast::emulation::config().grid)
#define __syncthreads() ::mbv3fast::emulation::sync_block(__FILE__, __LINE__)
#define __syncwarp() ::mbv3fast::emulation::sync_warp({"__syncwarp", __FILE__, __LINE__, 0})

namespace mbv3fast {

struct alignas(8) float2 {
  float x, y;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

struct alignas(8) uint2 {
  std::uint32_t x, y;
};

struct alignas(16) uint4 {
  std::uint32_t x, y, z, w;
};


// A pointer to global memory that knows its tensor's bounds.
template <class T>
class GlobalPtr {
 public:
  GlobalPtr() = default;
  GlobalPtr(T* data, std::int64_t count, bool awaited) : at_(data), begin_(data), end_(data + count), awaited_(awaited) {}

  explicit operator bool() const { return at_ != nullptr; }
  GlobalPtr operator+(std::int64_t elements) const {
    GlobalPtr moved = *this;
    moved.at_ = reinterpret_cast<T*>(reinterpret_cast<std::uintptr_t>(at_) + elements * sizeof(T));
    return moved;
  }

  // The bytes of a `V` there.
  template <class V>
  T* checked(const char* what) const {
    const auto at = reinterpret_cast<std::uintptr_t>(at_);
    const auto begin = reinterpret_cast<std::uintptr_t>(begin_), end = reinterpret_cast<std::uintptr_t>(end_);
    if (at < begin || at + sizeof(V) > end) {
      emulation::fail(std::string(what) + " out of bounds: " + std::to_string(sizeof(V)) + " bytes at " +
                      std::to_string(static_cast<std::int64_t>(at - begin)) + " of a tensor of " +
                      std::to_string(end - begin));
    }
    if (at % alignof(V) != 0) {
      emulation::fail(std::string(what) + " misaligned: needs a multiple of " + std::to_string(alignof(V)));
    }
    if (awaited_ && emulation::config().overlapped && !emulation::self().predecessor_done) {
      emulation::fail(std::string(what) + " of a tensor that the launch before may still use");
    }
    return at_;
  }

 private:
  T* at_ = nullptr;
  T* begin_ = nullptr;
  T* end_ = nullptr;
  bool awaited_ = false;
};

// A pointer to shared memory, of this block or another of its cluster.
template <class T>
struct SharedPtr {
  emulation::Block* block = nullptr;
  std::int64_t offset = 0;

  SharedPtr operator+(std::int64_t elements) const {
    return {block, offset + elements * static_cast<std::int64_t>(sizeof(T))};
  }
  operator SharedPtr<const T>() const { return {block, offset}; }
  explicit operator bool() const { return block != nullptr; }
};

template <class V, class T>
V load(GlobalPtr<T> from) {
  V value;
  std::memcpy(&value, from.template checked<V>("read"), sizeof(V));
  return value;
}

template <class V, class T>
void store(GlobalPtr<T> to, const V& value) {
  std::memcpy(to.template checked<V>("write"), &value, sizeof(V));
}

// Counts an access to another block's memory.
inline void count_remote(const emulation::Block* block, std::size_t bytes) {
  if (block != emulation::self().block) emulation::done().remote += static_cast<std::int64_t>(bytes);
}

template <class V, class T>
V load(SharedPtr<T> from) {
  V value;
  count_remote(from.block, sizeof(V));
  std::memcpy(&value, from.block->shared.read(emulation::self(), from.offset, sizeof(V), alignof(V)), sizeof(V));
  return value;
}

template <class V, class T>
void store(SharedPtr<T> to, const V& value) {
  count_remote(to.block, sizeof(V));
  std::memcpy(to.block->shared.write(emulation::self(), to.offset, sizeof(V), alignof(V)), &value, sizeof(V));
}

// What a kernel's host side makes of a tensor of so many elements: `weights` are those that nothing writes while the
// network runs, `activations` what the launch before may still write.
template <class T>
GlobalPtr<T> weights(T* data, std::int64_t count) {
  return {data, count, false};
}

template <class T>
GlobalPtr<T> activations(T* data, std::int64_t count) {
  return {data, count, true};
}

inline SharedPtr<std::uint8_t> shared_memory() { return {emulation::self().block, 0}; }

template <class T, class U>
SharedPtr<T> view(SharedPtr<U> memory) {
  return {memory.block, memory.offset};
}

// Products of tensor cores until now, for want of a clock.
inline std::int64_t now() { return emulation::done().products; }

inline void wait_for_predecessor() { emulation::self().predecessor_done = true; }
inline void start_successor() {}

inline unsigned cluster_rank() { return emulation::self().block->rank; }
inline void arrive_cluster() { emulation::arrive_cluster(); }
inline void wait_cluster() { emulation::wait_cluster(); }

template <class T>
SharedPtr<T> peer(SharedPtr<T> memory, unsigned rank) {
  return {&emulation::peer(rank), memory.offset};
}

}  // namespace mbv3fast

#include "warp.hpp"
