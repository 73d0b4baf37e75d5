// Where all members of a team wait until the last one has come. Not here: where they have to (forward.inl, backward.inl), and
// threads. Knows no torch, so that tests/cpu/race.cpp runs it under ThreadSanitizer.
#pragma once

#include <atomic>
#include <thread>

namespace birnn {

// They spin, since the wait is a fraction of a time step; if it takes long, a member has no core to itself, and the waiting ones
// give theirs up.
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
    for (int spins = 0; turn_.load(std::memory_order_acquire) == turn; ++spins) {
      if (spins > 2000) std::this_thread::yield();
    }
  }

 private:
  const int size_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<unsigned> turn_{0};
};

}  // namespace birnn
