// What launchers ask for, for tests: that what Python believes of a launch, and plans with, is so.
#include "machine.hpp"

// How many launches the calling thread made, and of the last: blocks, threads of each, bytes of its shared memory,
// blocks of a cluster.
extern "C" __attribute__((visibility("default"))) void mbv3fast_emulation_launched(std::int64_t (*figures)[5]) {
  const mbv3fast::emulation::Launched& all = mbv3fast::emulation::launched();
  const mbv3fast::emulation::Config& last = all.last;
  const std::int64_t found[5] = {all.count, last.grid.count(), last.block.count(),
                                 static_cast<std::int64_t>(last.shared_bytes), last.cluster};
  for (int i = 0; i < 5; ++i) (*figures)[i] = found[i];
}

// What the last launch did: products of tensor cores, bytes of cp.async, bytes of other blocks' shared memory, waits of
// threads at barriers of a cluster and of a block.
extern "C" __attribute__((visibility("default"))) void mbv3fast_emulation_done(std::int64_t (*figures)[5]) {
  const mbv3fast::emulation::Done& done = mbv3fast::emulation::launched().done;
  const std::int64_t found[5] = {done.products, done.copied, done.remote, done.cluster_waits, done.waits};
  for (int i = 0; i < 5; ++i) (*figures)[i] = found[i];
}
