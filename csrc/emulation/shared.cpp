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
    if (word.read.thread != nullptr && word.read.thread != &thread) {
      const Thread& last = *word.read.thread;
      (last.block == thread.block && last.warp() == thread.warp() ? word.same_warp : word.other_warp) = word.read;
    }
    word.read = {&thread, thread.clock};
    if (thread.clock.arrived > 0 && thread.clock.arrived >= word.late.clock.arrived) {
      if (word.late.thread != &thread) word.other_late = word.late;
      word.late = word.read;
    }
  });
  return bytes_.data() + offset;
}

void* Shared::write(Thread& thread, std::int64_t offset, std::size_t bytes, std::size_t alignment) {
  check(offset, bytes, alignment, "write");
  each_word(offset, bytes, [&](std::int64_t place, unsigned mask) {
    Word& word = this->word(place);
    if (word.in_flight) fail("write to what a cp.async still brings: " + at(offset, bytes));
    for (const Access* before :
         {&word.write, &word.read, &word.same_warp, &word.other_warp, &word.late, &word.other_late}) {
      if (before->ordered(thread)) continue;
      const char* did = before == &word.write ? " wrote" : " read";
      fail("race: write to what " + who(*before->thread) + did + ", no barrier between: " + at(offset, bytes));
    }
    word.write = {&thread, thread.clock};
    word.read = word.same_warp = word.other_warp = word.late = word.other_late = {};
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
