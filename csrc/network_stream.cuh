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
  __device__ Stream(const Network<T>& p, int rank, std::int64_t passes)
      : p_(p), rank_(rank), left_(passes * p.chunk_count), chunk_(load<Chunk>(p.chunks)) {
#pragma unroll
    for (int i = 0; i < kSlots - 1; ++i) send();
  }

  // The next chunk, once it is there for all threads, which no longer read the one before: its slot goes to a later one.
  __device__ SharedPtr<std::uint8_t> next() {
    wait_for_copies<kSlots - 2>();
    __syncthreads();
    send();
    used_ = used_ + 1 == kSlots ? 0 : used_ + 1;
    return shared_memory() + used_ * p_.slot;
  }

 private:
  __device__ void send() {
    if (left_ > 0) {
      const SharedPtr<std::uint8_t> to = shared_memory() + slot_ * p_.slot;
      const std::int64_t copy = rank_ & (chunk_.copies - 1);
      const GlobalPtr<const std::uint8_t> from = p_.weights + (chunk_.offset + copy * chunk_.bytes);
#pragma unroll 1
      for (int i = 16 * thread_index(); i < chunk_.bytes; i += 16 * kNetworkThreads) copy_async(to + i, from + i);
      sent_ = sent_ + 1 == p_.chunk_count ? 0 : sent_ + 1;
      chunk_ = load<Chunk>(p_.chunks + sent_);  // long before it is wanted
      slot_ = slot_ + 1 == kSlots ? 0 : slot_ + 1;
      --left_;
    }
    commit_copies();
  }

  const Network<T>& p_;
  const int rank_;
  std::int64_t left_;
  int sent_ = 0, slot_ = 0, used_ = kSlots - 1;
  Chunk chunk_;  // that is sent next
};

// A block in its cluster.
struct Place {
  int rank, size;
};

// A block in its group, of those that have the same rows.
struct Member {
  int size, groups, group, number;

  __device__ __forceinline__ Member(const Stage& s, const Place& place)
      : size(1 << s.group_bits), groups(place.size >> s.group_bits), group(place.rank >> s.group_bits),
        number(place.rank & (size - 1)) {}
};

// A map as a block has it.
template <class T>
struct Local {
  SharedPtr<T> memory;
  int first, end;  // rows that it is to have; the first may lie above the image, or all below it
  int width, pitch;

  __device__ __forceinline__ Local(const Map& map, int rank)
      : memory(view<T>(shared_memory() + map.at)), first(0), end(map.height), width(map.width), pitch(map.pitch) {
    if (map.rows == 0) return;
    const int own = (rank >> map.group_bits) * map.rows;
    first = own - map.above, end = own < map.height ? least(own + map.rows + map.below, map.height) : first;
  }
  __device__ __forceinline__ SharedPtr<T> row(int y) const { return memory + (y - first) * width * pitch; }
};

}  // namespace mbv3fast
