// Shared memory that knows who touched which word, and when.
#include <cstring>

#include "machine.hpp"

namespace mbv3fast::emulation {
namespace {

constexpr std::int64_t kWordBytes = 4;

int warp_of(int thread, const Thread& like) {
  const int threads = like.id - static_cast<int>(like.block->rank) * 0;  // unused; see same_warp
  (void)threads;
  return thread / kWarp;
}

// Whether a barrier lies between an access and what `thread` does now.
bool ordered(const Access& before, const Thread& thread, bool same_block, bool same_warp) {
  if (before.thread < 0 || before.thread == thread.id) return true;
  if (before.clock.arrived < thread.clock.passed) return true;
  if (same_block && before.clock.block < thread.clock.block) return true;
  return same_warp && before.clock.warp < thread.clock.warp;
}

}  // namespace
}  // namespace mbv3fast::emulation
