// The weights on their way: a ring of chunks in shared memory, filled in the order in which they are used, across stages
// and images, so that what the next stage needs arrives while this one computes.
#pragma once

#include "network_stage.cuh"

namespace mbv3fast {

constexpr int kSlots = 3;

template <class T>
class Stream {
 public:
  // Of so many passes through the table.
  __device__ Stream(const Network<T>& p, int rank, std::int64_t passes) : p_(p), rank_(rank), left_(passes * p.chunk_count) {
#pragma unroll
    for (int i = 0; i < kSlots; ++i) send();
  }

  // The next chunk, once it is there for all threads.
  __device__ SharedPtr<std::uint8_t> acquire() {
    wait_for_copies<kSlots - 1>();
    __syncthreads();
    return shared_memory() + (p_.ring + used_ * p_.slot);
  }

  // Its slot, when no thread reads it any more, goes to a later one.
  __device__ void release() {
    __syncthreads();
    used_ = used_ + 1 == kSlots ? 0 : used_ + 1;
    send();
  }

 private:
  __device__ void send() {
    if (left_ > 0) {
      const Chunk chunk = load<Chunk>(p_.chunks + sent_);
      const SharedPtr<std::uint8_t> to = shared_memory() + (p_.ring + slot_ * p_.slot);
      const GlobalPtr<const std::uint8_t> from = p_.weights + (chunk.offset + std::int64_t{rank_} * chunk.apart);
      for (int i = 16 * thread_index(); i < chunk.bytes; i += 16 * kNetworkThreads) copy_async(to + i, from + i);
      sent_ = sent_ + 1 == p_.chunk_count ? 0 : sent_ + 1;
      slot_ = slot_ + 1 == kSlots ? 0 : slot_ + 1;
      --left_;
    }
    commit_copies();
  }

  const Network<T>& p_;
  const int rank_;
  std::int64_t left_;
  int sent_ = 0, slot_ = 0, used_ = 0;
};

// Tells the other blocks of the cluster what this one has written to them, and waits for what they have to tell.
__device__ __forceinline__ void sync_cluster() {
  arrive_cluster();
  wait_cluster();
}

// A block in its cluster.
struct Place {
  int rank, size;
};

// A map as a block has it.
template <class T>
struct Local {
  SharedPtr<T> memory;
  int first, width, pitch;  // the row that comes first in memory

  __device__ __forceinline__ Local(const Map& map, int rank)
      : memory(view<T>(shared_memory() + map.at)), first(map.rows ? rank * map.rows - map.above : 0), width(map.width),
        pitch(map.pitch) {}
  __device__ __forceinline__ SharedPtr<T> row(int y) const { return memory + (y - first) * width * pitch; }
};

}  // namespace mbv3fast
