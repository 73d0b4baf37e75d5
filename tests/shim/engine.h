// Runs a kernel on the CPU: the threads of a block, its barrier, the shuffles of its warps, and streams that are drained in a
// random order. Two engines for the threads: fibers, switched in an order that a seed decides (the default), and threads of the
// operating system (BIRNN_SHIM_THREADS), which ThreadSanitizer understands.
//
// It finds wrong indices, wrong order and missing barriers. It cannot find a missing memory fence, and it says nothing about time.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
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

// One block at work, and the thread of it that runs at the moment.
struct Block;
struct Thread {
  Block* block;
  Dim index;
  int number;
  int64_t barriers = 0, shuffles = 0;
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
  std::vector<float> slots[2];  // of the shuffles, in turns

  // A barrier that a mutant leaves out (BIRNN_SHIM_SKIP_BARRIER: the how-manieth).
  bool skipped() const { return me->barriers++ == setting("BIRNN_SHIM_SKIP_BARRIER", -1); }

#ifdef BIRNN_SHIM_THREADS
  std::unique_ptr<std::barrier<>> all;
  std::vector<std::unique_ptr<std::barrier<>>> warps;

  void wait() {
    if (!skipped()) all->arrive_and_wait();
  }
  void wait_warp() { warps[me->number / 32]->arrive_and_wait(); }

  void run(const std::function<void()>& body) {
    const int count = int(threads.size());
    all = std::make_unique<std::barrier<>>(count);
    for (int w = 0; w * 32 < count; ++w) warps.push_back(std::make_unique<std::barrier<>>(std::min(32, count - w * 32)));
    std::vector<std::thread> running;
    for (Thread& t : threads) {
      running.emplace_back([&] {
        me = &t;
        body();
      });
    }
    for (std::thread& t : running) t.join();
  }
#else
  struct Fiber {
    ucontext_t context;
    bool done = false;
    int64_t at = 0;           // points at which it has stopped
    int64_t* gate = nullptr;  // the counter it waits for, until it has reached `open`
    int64_t open = 0;
  };
  static constexpr size_t stack_bytes = 64 * 1024;
  std::vector<Fiber> fibers;
  ucontext_t scheduler;
  int64_t arrived = 0;
  std::vector<int64_t> arrived_warp;
  const std::function<void()>* body;

  void stop(int64_t& counter, int64_t calls, int64_t members) {
    Fiber& f = fibers[size_t(me->number)];
    f.gate = &counter, f.open = calls * members;
    ++counter;
    Thread* self = me;
    swapcontext(&f.context, &scheduler);
    me = self;
  }
  void wait() {
    if (skipped()) {
      ++arrived;  // the others must not wait for it
      return;
    }
    stop(arrived, me->barriers, int64_t(threads.size()));
  }
  void wait_warp() {
    const int w = me->number / 32, members = std::min(32, int(threads.size()) - w * 32);
    stop(arrived_warp[size_t(w)], ++me->shuffles, members);
  }

  static void enter() {
    Block* b = me->block;
    Thread* self = me;
    (*b->body)();
    b->fibers[size_t(self->number)].done = true;
  }

  void run(const std::function<void()>& what) {
    static thread_local std::vector<std::vector<char>> stacks;
    const size_t count = threads.size();
    while (stacks.size() < count) stacks.emplace_back(stack_bytes);
    body = &what;
    fibers = std::vector<Fiber>(count);
    arrived_warp.assign(count / 32 + 1, 0);
    for (size_t i = 0; i < count; ++i) {
      getcontext(&fibers[i].context);
      fibers[i].context.uc_stack = {stacks[i].data(), 0, stack_bytes};
      fibers[i].context.uc_link = &scheduler;
      makecontext(&fibers[i].context, &Block::enter, 0);
    }
    static std::mt19937 random(unsigned(setting("BIRNN_SHIM_SEED", 0)));
    std::vector<size_t> order(count);
    for (size_t i = 0; i < count; ++i) order[i] = i;
    for (bool moved = true; moved;) {
      moved = false;
      std::shuffle(order.begin(), order.end(), random);
      for (size_t i : order) {
        Fiber& f = fibers[i];
        if (f.done || (f.gate && *f.gate < f.open)) continue;
        me = &threads[i], moved = true;
        swapcontext(&scheduler, &f.context);
      }
    }
    for (const Fiber& f : fibers) {
      if (!f.done) std::abort();  // a barrier that not all threads reach
    }
  }
#endif

  float exchange(float x, int mask) {
    // Two sets of slots in turns: nobody is two shuffles ahead of a neighbour.
    std::vector<float>& slot = slots[me->shuffles & 1];
#ifdef BIRNN_SHIM_THREADS
    ++me->shuffles;
#endif
    slot[size_t(me->number)] = x;
    wait_warp();
    return slot[size_t(me->number ^ mask)];
  }
};

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
