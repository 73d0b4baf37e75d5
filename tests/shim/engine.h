// Runs a kernel on the CPU: the threads of a block, its barrier, the shuffles of its warps, blocks that run at the same time,
// those of a cluster with what they push into each other's memory, and streams that are drained in a random order. Two engines
// for the threads: fibers, switched in an order that a seed decides (the default), and threads of the operating system
// (BIRNN_SHIM_THREADS), which ThreadSanitizer understands.
//
// It finds wrong indices, wrong order and missing barriers. It cannot find a missing memory fence, and it says nothing about time.
#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#ifdef BIRNN_SHIM_THREADS
#include <barrier>
#include <thread>
#else
#include <ucontext.h>
#endif

namespace shim {

inline int64_t setting(const char* name, int64_t otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? std::strtoll(text, nullptr, 10) : otherwise;
}

struct Dim {
  unsigned x, y;
};

// What a lane hands to the tensor cores.
struct Operands {
  uint32_t a[4], b[2];
};

// One block at work, and the thread of it that runs at the moment.
struct Block;
struct Cluster;
struct Thread {
  Block* block;
  Dim index;
  int number;
  int64_t barriers = 0, shuffles = 0, votes = 0, of_cluster = 0;
};

#ifdef BIRNN_SHIM_THREADS
inline thread_local Thread* me = nullptr;
#else
inline Thread* me = nullptr;
#endif

struct Block {
  Dim index, size;
  std::vector<std::max_align_t> shared;
  std::vector<Thread> threads;
  std::vector<uint32_t> slots[2];     // of the shuffles, in turns
  std::vector<char> votes[2];         // of `any`, in turns
  std::vector<Operands> operands[2];  // of the tensor cores, in turns with the shuffles
  Cluster* cluster = nullptr;
  bool mute = false;          // what it pushes never arrives
  std::atomic<int> ended{0};  // threads

  Block(Dim index, Dim size, size_t shared_bytes)
      : index(index), size(size), shared(shared_bytes / sizeof(std::max_align_t) + 1) {
    // Shared memory holds anything when a block starts.
    std::fill_n(reinterpret_cast<float*>(shared.data()), shared_bytes / sizeof(float), NAN);
    const int count = int(size.x * size.y);
    for (int t = 0; t < count; ++t) threads.push_back({this, {unsigned(t) % size.x, unsigned(t) / size.x}, t});
    for (std::vector<uint32_t>& slot : slots) slot.assign(size_t(count), ~0u);
    for (std::vector<char>& vote : votes) vote.assign(size_t(count), 0);
    for (std::vector<Operands>& all_of : operands) all_of.resize(size_t(count));
    make_engine();
  }

  // A barrier that a mutant leaves out (BIRNN_SHIM_SKIP_BARRIER: the how-manieth).
  bool skipped() const { return me->barriers++ == setting("BIRNN_SHIM_SKIP_BARRIER", -1); }

  int count() const { return int(threads.size()); }
  int warps() const { return (count() + 31) / 32; }
  int members(int warp) const { return std::min(32, count() - warp * 32); }

  bool any(bool so) {
    // Two sets of votes in turns: nobody is two of these barriers ahead of another.
    std::vector<char>& vote = votes[me->votes++ & 1];
    vote[size_t(me->number)] = so;
    wait();
    return std::find(vote.begin(), vote.end(), 1) != vote.end();
  }

  uint32_t shuffle(uint32_t x, int from) {
    // Two sets of slots in turns: nobody is two shuffles ahead of a neighbour.
    std::vector<uint32_t>& slot = slots[me->shuffles++ & 1];
    slot[size_t(me->number)] = x;
    wait_warp();
    return slot[size_t(from)];
  }

  // The operands of this lane's warp, lane by lane.
  const Operands* gather(const Operands& own) {
    std::vector<Operands>& of_all = operands[me->shuffles++ & 1];
    of_all[size_t(me->number)] = own;
    wait_warp();
    return &of_all[size_t(me->number / 32 * 32)];
  }

#ifdef BIRNN_SHIM_THREADS
  std::unique_ptr<std::barrier<>> all;
  std::vector<std::unique_ptr<std::barrier<>>> of_warp;

  void make_engine() {
    all = std::make_unique<std::barrier<>>(count());
    for (int w = 0; w < warps(); ++w) of_warp.push_back(std::make_unique<std::barrier<>>(members(w)));
  }
  void wait() {
    if (!skipped()) all->arrive_and_wait();
  }
  void wait_warp() { of_warp[size_t(me->number / 32)]->arrive_and_wait(); }
  static void pause() { std::this_thread::yield(); }
#else
  struct Fiber {
    ucontext_t context;
    bool done = false;
    int64_t* gate = nullptr;  // the counter it waits for, until it has reached `open`
    int64_t open = 0;
  };
  std::vector<Fiber> fibers;
  int64_t arrived = 0;
  std::vector<int64_t> arrived_warp;
  unsigned asleep = 0;  // rounds for which none of its threads runs

  void make_engine() {
    fibers = std::vector<Fiber>(threads.size());
    arrived_warp.assign(size_t(warps()), 0);
  }
  static void stop(int64_t* counter, int64_t open);
  void wait() {
    ++arrived;
    if (!skipped()) stop(&arrived, me->barriers * count());  // the others need not wait for who skips it
  }
  void wait_warp() {
    const int w = me->number / 32;
    ++arrived_warp[size_t(w)];
    stop(&arrived_warp[size_t(w)], me->shuffles * members(w));
  }
  static void pause();
#endif
};

// Blocks that see each other's shared memory.
struct Cluster {
  std::vector<Block*> blocks;
  int64_t threads = 0;

  void add(Block& block) {
    block.cluster = this;
    blocks.push_back(&block), threads += block.count();
  }
#ifdef BIRNN_SHIM_THREADS
  std::unique_ptr<std::barrier<>> all;

  void ready() { all = std::make_unique<std::barrier<>>(threads); }
  void wait() { all->arrive_and_wait(); }
#else
  int64_t arrived = 0;

  void ready() {}
  void wait() {
    ++arrived;
    Block::stop(&arrived, ++me->of_cluster * threads);
  }
#endif
};

// An mbarrier with one arrival to a phase, as it lies in shared memory: a phase ends when that and the bytes announced have come.
struct Arrivals {
  int32_t missing;  // bytes
  uint8_t announced, phase;

  // Where something may be pushed to that nobody has made one yet, this changes what will be overwritten.
  static void change(uint64_t* word, bool announce, int32_t bytes) {
    const std::atomic_ref<uint64_t> shared(*word);
    uint64_t before = shared.load(std::memory_order_relaxed), after;
    do {
      Arrivals a;
      std::memcpy(&a, &before, sizeof(a));
      a.missing += bytes, a.announced |= uint8_t(announce);
      if (a.announced && a.missing == 0) a.announced = 0, a.phase = !a.phase;
      after = 0, std::memcpy(&after, &a, sizeof(a));
    } while (!shared.compare_exchange_weak(before, after, std::memory_order_acq_rel, std::memory_order_relaxed));
  }
  static bool ended(uint64_t* word, bool phase) {
    const uint64_t now = std::atomic_ref<uint64_t>(*word).load(std::memory_order_acquire);
    Arrivals a;
    std::memcpy(&a, &now, sizeof(a));
    return a.phase != phase;
  }
};

// What is on its way into a block's shared memory.
struct Push {
  Block* block;
  char* to;
  uint32_t words[4];
  int count;
  uint64_t* arrivals;

  void land() const {
    if (block->ended == block->count()) {
      std::fputs("a push into a block that has ended\n", stderr);
      std::abort();
    }
    std::memcpy(to, words, size_t(count) * sizeof(uint32_t));
    Arrivals::change(arrivals, false, -count * int(sizeof(uint32_t)));
  }
};
#ifdef BIRNN_SHIM_THREADS
inline void send(const Push& push) { push.land(); }
inline void let_land() {}
#else
inline std::vector<Push> in_flight;

inline void send(const Push& push) { in_flight.push_back(push); }
inline void let_land() {
  while (!in_flight.empty()) Block::pause();
}
#endif

// Runs blocks, all of them at the same time.
typedef std::vector<std::unique_ptr<Block>> Blocks;

#ifdef BIRNN_SHIM_THREADS
inline void run(Blocks& blocks, const std::function<void()>& body) {
  std::vector<std::thread> running;
  for (auto& block : blocks) {
    for (Thread& t : block->threads) {
      running.emplace_back([&] {
        me = &t;
        body();
        ++t.block->ended;
      });
    }
  }
  for (std::thread& t : running) t.join();
}
#else
inline ucontext_t scheduler;
inline int64_t rounds = 0;  // in which every thread that can has run up to its next stop
inline const std::function<void()>* body_of_all;

inline void Block::stop(int64_t* counter, int64_t open) {
  Fiber& f = me->block->fibers[size_t(me->number)];
  f.gate = counter, f.open = open;
  Thread* self = me;
  swapcontext(&f.context, &scheduler);
  me = self;
}

inline void Block::pause() { stop(&rounds, rounds + 4); }

inline void enter() {
  Thread* self = me;
  (*body_of_all)();
  self->block->fibers[size_t(self->number)].done = true;
  ++self->block->ended;
}

inline void run(Blocks& blocks, const std::function<void()>& body) {
  static constexpr size_t stack_bytes = 64 * 1024;
  static std::vector<std::vector<char>> stacks;  // kept from run to run
  static std::mt19937 random(unsigned(setting("BIRNN_SHIM_SEED", 0)));
  const unsigned slow = unsigned(setting("BIRNN_SHIM_SLOW_BLOCK", -1)), seldom = unsigned(setting("BIRNN_SHIM_SELDOM", 1));
  body_of_all = &body;
  std::vector<Thread*> order;
  for (auto& block : blocks) {
    for (Thread& t : block->threads) order.push_back(&t);
  }
  while (stacks.size() < order.size()) stacks.emplace_back(stack_bytes);
  for (size_t i = 0; i < order.size(); ++i) {
    Block::Fiber& f = order[i]->block->fibers[size_t(order[i]->number)];
    getcontext(&f.context);
    f.context.uc_stack = {stacks[i].data(), 0, stack_bytes};
    f.context.uc_link = &scheduler;
    makecontext(&f.context, &enter, 0);
  }
  for (bool moved = true; moved;) {
    ++rounds, moved = false;
    // Now and then a block falls behind the others, and one, if a test wants it so, far behind (BIRNN_SHIM_SLOW_BLOCK).
    for (auto& block : blocks) {
      if (block->asleep) {
        --block->asleep;
      } else if (blocks.size() > 1 && random() % 8 == 0) {
        block->asleep = random() % (block->index.x == slow ? 512 : 16);
      }
      if (block->asleep) moved = true;
    }
    // Some of what is in flight arrives, in any order; if a test wants it so, only in every so-manieth round (BIRNN_SHIM_SELDOM).
    std::shuffle(in_flight.begin(), in_flight.end(), random);
    moved = moved || !in_flight.empty();
    const size_t arriving = random() % (in_flight.size() / 2 + 2);
    for (size_t some = rounds % seldom ? 0 : arriving; some && !in_flight.empty(); --some) {
      const Push push = in_flight.back();
      in_flight.pop_back();
      push.land();
    }
    std::shuffle(order.begin(), order.end(), random);
    for (Thread* t : order) {
      Block::Fiber& f = t->block->fibers[size_t(t->number)];
      moved = moved || (!f.done && f.gate == &rounds);
      if (t->block->asleep || f.done || (f.gate && *f.gate < f.open)) continue;
      me = t, moved = true;
      swapcontext(&scheduler, &f.context);
    }
  }
  for (Thread* t : order) {
    if (!t->block->fibers[size_t(t->number)].done) std::abort();  // a barrier that not all threads reach
  }
}
#endif

// A stream: what was enqueued, in order. `drain` runs all streams that belong together, whichever may go next.
struct Event {
  bool happened = false;
};
struct Item {
  std::function<void()> work;
  std::shared_ptr<Event> wait;  // to be waited for, where there is no work
};
struct Queue {
  std::vector<Item> items;
  size_t next = 0;
};
inline thread_local Queue* current = nullptr;

inline void enqueue(void* stream, std::function<void()> work) {
  static_cast<Queue*>(stream)->items.push_back({std::move(work), nullptr});
}

inline void drain(std::vector<Queue>& queues) {
  static std::mt19937 random(unsigned(setting("BIRNN_SHIM_SEED", 0)));
  for (;;) {
    std::vector<Queue*> ready;
    bool left = false;
    for (Queue& q : queues) {
      if (q.next == q.items.size()) continue;
      left = true;
      const Item& item = q.items[q.next];
      if (item.work || item.wait->happened) ready.push_back(&q);
    }
    if (!left) return;
    if (ready.empty()) std::abort();  // streams that wait for each other
    // Sometimes a stream runs far ahead of the others.
    Queue& q = *ready[random() % ready.size()];
    for (unsigned run = random() % 8 + 1; run && q.next < q.items.size(); --run) {
      const Item item = q.items[q.next];
      if (!item.work && !item.wait->happened) break;
      ++q.next;
      if (item.work) item.work();
    }
  }
}

}  // namespace shim
