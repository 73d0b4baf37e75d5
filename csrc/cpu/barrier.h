// Where threads wait for each other: the members of a team, and the teams of both directions. Not here: where they have to
// (forward.inl, backward.inl, weight_gradients.h), and threads. Knows no torch, so that tests/cpu/race.cpp runs it under
// ThreadSanitizer.
#pragma once

#include <atomic>
#include <thread>

#include "../layer.h"

namespace birnn {

// Spins until there() is true, since the wait is a fraction of a time step; if it takes long, somebody has no core to himself, and
// the waiting ones give theirs up.
template <class F>
void spin_until(F&& there) {
  for (int spins = 0; !there();) {
    if (spins < 2000) {
      ++spins;
    } else {
      std::this_thread::yield();
    }
  }
}

// All members wait until the last one has come.
class Barrier {
 public:
  explicit Barrier(int size) : size_(size) {}
  Barrier(const Barrier& other) : size_(other.size_) {}

  void wait() {
    const unsigned turn = turn_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      turn_.store(turn + 1, std::memory_order_release);
      return;
    }
    spin_until([&] { return turn_.load(std::memory_order_acquire) != turn; });
  }

 private:
  const int size_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> turn_{0};
};

// A direction tells the other that its half is written: all members of its team must have.
class Crossing {
 public:
  explicit Crossing(int size) : size_(size) {}
  Crossing(const Crossing& other) : size_(other.size_) {}

  void tell(int dir) { told_[dir].by.fetch_add(1, std::memory_order_release); }
  void wait(int dir) {
    spin_until([&] { return told_[1 - dir].by.load(std::memory_order_acquire) == size_; });
  }

 private:
  const int size_;
  struct alignas(64) Count {
    std::atomic<int> by{0};
  } told_[2];
};

inline const Waiting waiting = {[](Barrier& b) { b.wait(); }, [](Crossing& c, int dir) { c.tell(dir); },
                                [](Crossing& c, int dir) { c.wait(dir); }};

}  // namespace birnn
