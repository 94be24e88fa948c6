// A GPU's multiprocessors on the CPU: the threads of a block or cluster are fibers that take turns in a random order, and
// shared memory knows who touched which word, and when.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace mbv3fast::emulation {

inline constexpr int kWarp = 32;

// What a kernel did that none may.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Dim3 {
  unsigned x = 1, y = 1, z = 1;
  unsigned count() const { return x * y * z; }
};

// What is emulated, and the order of its threads: equal seeds give equal orders.
struct Chip {
  int capability = 90;  // 10 * major + minor
  std::uint64_t seed = 0;

  std::size_t shared_limit() const;  // bytes of dynamic shared memory that a block may have
  unsigned cluster_limit() const;    // blocks of a cluster
};

Chip& chip();  // of the calling thread

struct Config {
  Dim3 grid, block;
  std::size_t shared_bytes = 0;
  unsigned cluster = 1;     // blocks, along x
  bool overlapped = false;  // the kernel may start while its predecessor drains
};

struct Block;

// How far a thread has come: barriers of its block and its warp that it has passed, those of its cluster that it has
// arrived at, and passed.
struct Clock {
  std::uint32_t block = 0, warp = 0, arrived = 0, passed = 0;
};

// Where threads meet: what they do there, in which line of the source, and a number that they must agree on.
struct Place {
  const char* what = nullptr;
  const char* file = nullptr;
  int line = 0, number = 0;

  bool operator==(const Place& other) const;
  std::string text() const;
};

// One CUDA thread.
struct Thread {
  Block* block = nullptr;
  Dim3 index;
  int number = 0;  // in its block
  Clock clock;
  bool predecessor_done = false;
  Place waits;  // for what; nowhere while it can go on

  struct Copy {  // of a cp.async; `source` is null where it brings zeros
    std::int64_t offset;
    const void* source;
    std::size_t bytes;
  };
  std::vector<std::vector<Copy>> copies;  // groups, the last one still open

  int warp() const { return number / kWarp; }
  int lane() const { return number % kWarp; }
};

// The bytes of a block's shared memory. Its functions check that an access lies within, is aligned, touches nothing that
// a cp.async still brings, and is ordered by a barrier with what other threads do there; they throw Fault.
class Shared {
 public:
  explicit Shared(std::size_t bytes);

  // To bytes that have been written.
  const void* read(Thread& thread, std::int64_t offset, std::size_t bytes, std::size_t alignment);
  void* write(Thread& thread, std::int64_t offset, std::size_t bytes, std::size_t alignment);
  // A cp.async sets out; its bytes may not be touched until it lands.
  void depart(Thread& thread, std::int64_t offset, std::size_t bytes);
  void land(Thread& thread, const Thread::Copy& copy);

 private:
  struct Access {
    const Thread* thread = nullptr;
    Clock clock;
    bool ordered(const Thread& next) const;
  };
  // The reads of a block's threads since the last write: the last one, those of another thread of its warp and of another
  // warp, and the one behind most arrivals at the cluster's barrier: it may not be ordered with what comes where reads
  // after it, in the order of turns, are.
  struct Reads {
    const Block* block = nullptr;
    Access last, same_warp, other_warp, late;
    void add(const Thread& thread);
    const Access* unordered(const Thread& next) const;
  };
  struct Word {
    Access write;
    Reads reads;                // of the block that came first
    std::vector<Reads> others;  // of other blocks of the cluster
    std::uint8_t written = 0;   // a bit a byte
    bool in_flight = false;
    Reads& reads_of(const Block* block);
  };

  void check(std::int64_t offset, std::size_t bytes, std::size_t alignment, const char* what) const;
  Word& word(std::int64_t offset) { return words_[static_cast<std::size_t>(offset) / sizeof(std::uint32_t)]; }

  std::vector<std::uint8_t> bytes_;
  std::vector<Word> words_;
};

// The lanes of a warp that wait for the others, to do something together.
struct Meeting {
  std::vector<Thread*> waiting;
  void* parts[kWarp] = {};
};

struct Block {
  Block(const Config& config, Dim3 index, unsigned rank);

  Dim3 index;
  unsigned rank;  // in its cluster
  Shared shared;
  std::vector<Thread> threads;
  int live;  // threads that have not ended
  std::uint32_t visited = 0;  // the cluster barrier behind the last access from another block, counted from 1
  std::vector<Thread*> barrier;  // who waits at it
  std::vector<Meeting> warps;
};

// Of the thread that runs now.
Thread& self();
const Config& config();
Block& peer(unsigned rank);  // of its cluster

[[noreturn]] void fail(const std::string& what);

void sync_block(const char* file, int line);
void sync_warp(const Place& place);
void arrive_cluster();
void wait_cluster();
// All lanes of a warp come, each with its `part`; `act` gets all parts, once.
void meet(const Place& place, void* part, const std::function<void(void**)>& act);

// Runs `kernel` once for every thread. Throws Fault for the first thing that it did wrong.
void run(const std::string& name, const Config& config, const std::function<void()>& kernel);

// What the threads of a launch did, all together.
struct Done {
  std::int64_t products = 0;  // of tensor cores, each of a warp
  std::int64_t copied = 0;    // bytes, by cp.async from memory
  std::int64_t remote = 0;    // bytes read from or written to other blocks' shared memory
  std::int64_t cluster_waits = 0, waits = 0;  // of threads, at barriers of a cluster, of a block
};

// What the calling thread asked for: its last launch, run or refused, what that did, and how many there were.
struct Launched {
  Config last;
  std::int64_t count = 0;
  Done done;
};

const Launched& launched();
Done& done();  // of the launch that runs

}  // namespace mbv3fast::emulation
