// Shared memory that knows who touched which word, and when.
#include <algorithm>
#include <cstring>

#include "machine.hpp"

namespace mbv3fast::emulation {
namespace {

constexpr std::int64_t kWordBytes = sizeof(std::uint32_t);

// Calls `visit(first byte of a word, mask of its bytes)` for each word of a range.
template <class Visit>
void each_word(std::int64_t offset, std::size_t bytes, Visit visit) {
  const std::int64_t end = offset + static_cast<std::int64_t>(bytes);
  for (std::int64_t place = offset / kWordBytes * kWordBytes; place < end; place += kWordBytes) {
    unsigned mask = 0;
    for (int byte = 0; byte < kWordBytes; ++byte) {
      if (place + byte >= offset && place + byte < end) mask |= 1u << byte;
    }
    visit(place, mask);
  }
}

std::string at(std::int64_t offset, std::size_t bytes) {
  return std::to_string(bytes) + " bytes at " + std::to_string(offset) + " of shared memory";
}

std::string who(const Thread& thread) {
  return "thread " + std::to_string(thread.number) + " of block " + std::to_string(thread.block->rank);
}

}  // namespace

Shared::Shared(std::size_t bytes) : bytes_(bytes, 0xFF), words_((bytes + kWordBytes - 1) / kWordBytes) {}

bool Shared::Access::ordered(const Thread& next) const {
  if (thread == nullptr || thread == &next || clock.arrived < next.clock.passed) return true;
  if (thread->block != next.block) return false;
  return clock.block < next.clock.block || (thread->warp() == next.warp() && clock.warp < next.clock.warp);
}

void Shared::Reads::add(const Thread& thread) {
  if (last.thread != nullptr && last.thread != &thread) {
    (last.thread->warp() == thread.warp() ? same_warp : other_warp) = last;
  }
  last = {&thread, thread.clock};
  if (thread.clock.arrived >= late.clock.arrived) late = last;
}

const Shared::Access* Shared::Reads::unordered(const Thread& next) const {
  for (const Access* before : {&last, &same_warp, &other_warp, &late}) {
    if (!before->ordered(next)) return before;
  }
  return nullptr;
}

Shared::Reads& Shared::Word::reads_of(const Block* block) {
  if (reads.block == nullptr) reads.block = block;
  if (reads.block == block) return reads;
  for (Reads& others_reads : others) {
    if (others_reads.block == block) return others_reads;
  }
  others.push_back({block, {}, {}, {}, {}});
  return others.back();
}

void Shared::check(std::int64_t offset, std::size_t bytes, std::size_t alignment, const char* what) const {
  if (offset < 0 || offset + static_cast<std::int64_t>(bytes) > static_cast<std::int64_t>(bytes_.size())) {
    fail(std::string(what) + " out of bounds: " + at(offset, bytes) + ", which has " + std::to_string(bytes_.size()));
  }
  if (offset % static_cast<std::int64_t>(alignment) != 0) {
    fail(std::string(what) + " misaligned: " + at(offset, bytes) + ", needs a multiple of " + std::to_string(alignment));
  }
}

const void* Shared::read(Thread& thread, std::int64_t offset, std::size_t bytes, std::size_t alignment) {
  check(offset, bytes, alignment, "read");
  each_word(offset, bytes, [&](std::int64_t place, unsigned mask) {
    Word& word = this->word(place);
    if (word.in_flight) fail("read of what a cp.async still brings: " + at(offset, bytes));
    if ((word.written & mask) != mask) fail("read of what nothing wrote: " + at(offset, bytes));
    if (!word.write.ordered(thread)) {
      fail("race: read of what " + who(*word.write.thread) + " wrote, no barrier between: " + at(offset, bytes));
    }
    word.reads_of(thread.block).add(thread);
  });
  return bytes_.data() + offset;
}

void* Shared::write(Thread& thread, std::int64_t offset, std::size_t bytes, std::size_t alignment) {
  check(offset, bytes, alignment, "write");
  each_word(offset, bytes, [&](std::int64_t place, unsigned mask) {
    Word& word = this->word(place);
    if (word.in_flight) fail("write to what a cp.async still brings: " + at(offset, bytes));
    const Access* before = word.write.ordered(thread) ? word.reads.unordered(thread) : &word.write;
    for (const Reads& reads : word.others) before = before != nullptr ? before : reads.unordered(thread);
    if (before != nullptr) {
      const char* did = before == &word.write ? " wrote" : " read";
      fail("race: write to what " + who(*before->thread) + did + ", no barrier between: " + at(offset, bytes));
    }
    word.write = {&thread, thread.clock};
    word.reads = {};
    word.others.clear();
    word.written |= mask;
  });
  return bytes_.data() + offset;
}

void Shared::depart(Thread& thread, std::int64_t offset, std::size_t bytes) {
  write(thread, offset, bytes, bytes);
  each_word(offset, bytes, [&](std::int64_t place, unsigned) { word(place).in_flight = true; });
}

void Shared::land(Thread& thread, const Thread::Copy& copy) {
  each_word(copy.offset, copy.bytes, [&](std::int64_t place, unsigned) {
    word(place).in_flight = false;
    word(place).write = {&thread, thread.clock};
  });
  std::uint8_t* target = bytes_.data() + copy.offset;
  if (copy.source == nullptr) {
    std::fill_n(target, copy.bytes, std::uint8_t{0});
  } else {
    std::memcpy(target, copy.source, copy.bytes);
  }
}

}  // namespace mbv3fast::emulation
