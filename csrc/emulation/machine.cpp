// Threads that take turns, and what they wait at.
#include "machine.hpp"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <random>

#include "fiber.hpp"

namespace mbv3fast::emulation {
namespace {

const Place kEnded = {"its end", nullptr, 0, 0};

std::string named(const Thread& thread) {
  const auto triple = [](const Dim3& index) {
    return "(" + std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z) + ")";
  };
  return "thread " + triple(thread.index) + " of block " + triple(thread.block->index);
}

Dim3 unflatten(unsigned number, const Dim3& size) {
  return {number % size.x, number / size.x % size.y, number / size.x / size.y};
}

// The threads of a cluster, from their first turns to their last. Its fibers serve one cluster after another.
class Cluster {
 public:
  Cluster(const Config& config, const std::function<void()>& kernel)
      : config(config), kernel_(kernel), fibers_(config.cluster * config.block.count()), order(chip().seed) {}

  void run(const std::vector<Dim3>& indices);

  Thread& thread() { return *current_; }
  Block& block(unsigned rank) { return *blocks_.at(rank); }
  // The current thread comes to where `expected` threads meet, and goes on when all are there; the last calls `done`.
  void gather(std::vector<Thread*>& waiting, std::size_t expected, const Place& where, const std::function<void()>& done);
  void arrive();
  void pass();

  const Config& config;

 private:
  const std::function<void()>& kernel_;
  std::vector<Fiber> fibers_;

 public:
  std::mt19937_64 order;

 private:
  Fiber& fiber(const Thread& thread) { return fibers_[thread.block->rank * config.block.count() + thread.number]; }
  void live(Thread& thread);
  void end(Thread& thread);
  void wait(const Place& where);
  void wake(std::vector<Thread*>& waiting);
  [[noreturn]] void report_deadlock() const;

  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Thread*> ready_, at_barrier_;
  std::size_t arrived_ = 0;     // at the cluster's barrier, in this phase
  std::uint32_t phases_ = 0;    // of that barrier that are over
  std::size_t unfinished_ = 0;  // threads
  Thread* current_ = nullptr;
  std::exception_ptr fault_;
};

thread_local Cluster* running = nullptr;
thread_local Chip emulated;
thread_local Launched asked_for;

void Cluster::run(const std::vector<Dim3>& indices) {
  blocks_.clear();
  phases_ = 0;
  for (const Dim3& index : indices) {
    blocks_.push_back(std::make_unique<Block>(config, index, static_cast<unsigned>(blocks_.size())));
    for (Thread& thread : blocks_.back()->threads) {
      fiber(thread).start([this, &thread] { live(thread); });
      ready_.push_back(&thread);
    }
  }
  unfinished_ = ready_.size();
  while (unfinished_ > 0) {
    if (ready_.empty()) report_deadlock();
    std::swap(ready_[order() % ready_.size()], ready_.back());
    current_ = ready_.back();
    ready_.pop_back();
    fiber(*current_).resume();
    if (fault_) std::rethrow_exception(fault_);
  }
}

void Cluster::live(Thread& thread) {
  try {
    kernel_();
    end(thread);
  } catch (...) {
    fault_ = std::current_exception();
  }
}

void Cluster::end(Thread& thread) {
  thread.waits = kEnded;
  --unfinished_;
  Block& block = *thread.block;
  if (--block.live == 0 && block.visited > thread.clock.passed) {
    fail("the block ends while another of its cluster may still access its shared memory: no cluster barrier between");
  }
}

void Cluster::wait(const Place& where) {
  Thread& thread = *current_;
  thread.waits = where;
  Fiber::pause();
}

void Cluster::wake(std::vector<Thread*>& waiting) {
  for (Thread* thread : waiting) {
    thread->waits = {};
    ready_.push_back(thread);
  }
  waiting.clear();
}

void Cluster::gather(std::vector<Thread*>& waiting, std::size_t expected, const Place& where,
                     const std::function<void()>& done) {
  if (!waiting.empty() && !(waiting.front()->waits == where)) {
    fail("missed barrier: " + named(*waiting.front()) + " waits at " + waiting.front()->waits.text() +
         ", this one comes to " + where.text());
  }
  if (waiting.size() + 1 < expected) {
    waiting.push_back(current_);
    wait(where);
    return;
  }
  done();
  wake(waiting);
}

void Cluster::arrive() {
  Clock& clock = current_->clock;
  if (clock.arrived != clock.passed) fail("arrives at the cluster's barrier twice, and waits there once");
  ++clock.arrived;
  if (++arrived_ < fibers_.size()) return;
  arrived_ = 0;
  ++phases_;
  wake(at_barrier_);
}

void Cluster::pass() {
  Clock& clock = current_->clock;
  if (clock.arrived == clock.passed) fail("waits at the cluster's barrier where it has not arrived");
  if (phases_ < clock.arrived) {
    at_barrier_.push_back(current_);
    wait({"the cluster's barrier", nullptr, 0, 0});
  }
  ++clock.passed;
}

void Cluster::report_deadlock() const {
  std::vector<const Thread*> threads;
  for (const auto& block : blocks_) {
    for (const Thread& thread : block->threads) threads.push_back(&thread);
  }
  const auto waits = [](const Thread* thread) { return !(thread->waits == kEnded); };
  const Thread& first = **std::find_if(threads.begin(), threads.end(), waits);
  std::string what = "missed barrier: " + named(first) + " waits at " + first.waits.text();
  for (const Thread* other : threads) {
    if (other->waits == first.waits) continue;
    what += ", " + named(*other) + " is at " + other->waits.text();
    break;
  }
  throw Fault(what);
}

void check_config(const Config& config) {
  const auto need = [](bool right, const std::string& what) {
    if (!right) throw Fault("launch: " + what);
  };
  const unsigned threads = config.block.count();
  need(threads > 0 && threads <= 1024, std::to_string(threads) + " threads a block, needs 1 to 1024");
  need(config.grid.y <= 65535 && config.grid.z <= 65535, "a grid's y and z are at most 65535");
  need(config.shared_bytes <= chip().shared_limit(), std::to_string(config.shared_bytes) +
                                                         " bytes of shared memory, a block of this chip has " +
                                                         std::to_string(chip().shared_limit()));
  need(config.cluster >= 1 && config.cluster <= chip().cluster_limit() && config.grid.x % config.cluster == 0,
       "a cluster of " + std::to_string(config.cluster) + " blocks in a grid of " + std::to_string(config.grid.x) +
           ", this chip has up to " + std::to_string(chip().cluster_limit()));
}

}  // namespace

bool Place::operator==(const Place& other) const {
  const auto same = [](const char* a, const char* b) {
    return a == b || (a != nullptr && b != nullptr && std::strcmp(a, b) == 0);
  };
  return line == other.line && number == other.number && same(what, other.what) && same(file, other.file);
}

std::string Place::text() const {
  if (file == nullptr) return what;
  const std::string path = file;
  const std::string of = number == 0 ? "" : " " + std::to_string(number);
  return what + of + " of " + path.substr(path.find_last_of('/') + 1) + ":" + std::to_string(line);
}

Chip& chip() { return emulated; }

std::size_t Chip::shared_limit() const {
  switch (capability) {  // CUDA C++ Programming Guide, technical specifications per compute capability
    case 75: return 64 * 1024;
    case 80: case 87: return 163 * 1024;
    case 86: case 89: case 120: return 99 * 1024;
    case 90: case 100: return 227 * 1024;
    default: return 48 * 1024;
  }
}

unsigned Chip::cluster_limit() const { return capability >= 90 ? 16 : 1; }

Block::Block(const Config& config, Dim3 index, unsigned rank)
    : index(index), rank(rank), shared(config.shared_bytes), threads(config.block.count()),
      live(static_cast<int>(threads.size())), warps((threads.size() + kWarp - 1) / kWarp) {
  for (std::size_t number = 0; number < threads.size(); ++number) {
    threads[number].block = this;
    threads[number].number = static_cast<int>(number);
    threads[number].index = unflatten(static_cast<unsigned>(number), config.block);
    threads[number].copies.emplace_back();
  }
}

Thread& self() { return running->thread(); }

const Config& config() { return running->config; }

void fail(const std::string& what) { throw Fault(what + " (" + named(self()) + ")"); }

void sync_block(const char* file, int line) {
  Block& block = *self().block;
  ++done().waits;
  running->gather(block.barrier, block.threads.size(), {"__syncthreads", file, line, 0}, [] {});
  ++self().clock.block;
}

void meet(const Place& place, void* part, const std::function<void(void**)>& act) {
  Thread& thread = self();
  Meeting& meeting = thread.block->warps[thread.warp()];
  meeting.parts[thread.lane()] = part;
  const std::size_t lanes = std::min<std::size_t>(kWarp, thread.block->threads.size() - thread.warp() * kWarp);
  if (lanes < kWarp) fail(place.text() + " in a warp of " + std::to_string(lanes) + " threads");
  running->gather(meeting.waiting, kWarp, place, [&] { act(meeting.parts); });
}

void sync_warp(const Place& place) {
  meet(place, nullptr, [](void**) {});
  ++self().clock.warp;
}

void arrive_cluster() { running->arrive(); }

void wait_cluster() {
  ++done().cluster_waits;
  running->pass();
}

Block& peer(unsigned rank) {
  Thread& thread = self();
  if (rank >= running->config.cluster) fail("block " + std::to_string(rank) + " of a cluster of fewer");
  Block& block = running->block(rank);
  if (&block == thread.block) return block;
  if (thread.clock.passed == 0) fail("access to another block's shared memory before a cluster barrier: is it there yet?");
  if (block.live == 0) fail("access to the shared memory of a block that has ended");
  block.visited = std::max(block.visited, thread.clock.arrived + 1);
  return block;
}

void run(const std::string& name, const Config& config, const std::function<void()>& kernel) {
  asked_for = {config, asked_for.count + 1, {}};
  try {
    check_config(config);
    Cluster cluster(config, kernel);
    std::vector<unsigned> order(config.grid.count() / config.cluster);
    std::iota(order.begin(), order.end(), 0u);
    std::shuffle(order.begin(), order.end(), cluster.order);
    for (const unsigned number : order) {
      std::vector<Dim3> indices;
      for (unsigned rank = 0; rank < config.cluster; ++rank) {
        indices.push_back(unflatten(number * config.cluster + rank, config.grid));
      }
      running = &cluster;
      cluster.run(indices);
    }
    running = nullptr;
  } catch (const Fault& fault) {
    running = nullptr;
    throw Fault(name + ": " + fault.what());
  }
}

const Launched& launched() { return asked_for; }

Done& done() { return asked_for.done; }

}  // namespace mbv3fast::emulation
