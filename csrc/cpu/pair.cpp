// Tasks on torch's OpenMP threads, and the plan of who does what.
#include "pair.h"

#include <ATen/Parallel.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <numeric>
#include <system_error>
#include <thread>

namespace birnn {

namespace {

// GNU's OpenMP does not survive fork(): a child that opens a parallel region waits for threads that only its parent
// has. So a forked child (a DataLoader worker, say) starts threads of its own, which costs some 50 us a call but cannot
// hang.
std::atomic<bool> forked{false};
const int registered = pthread_atfork(nullptr, nullptr, [] { forked.store(true); });

// (Bodies do not throw: they work on memory that is there already.)
void run_on_own_threads(int64_t count, const std::function<void(int64_t)>& body) {
  std::vector<std::thread> threads;
  threads.reserve(count);
  int64_t started = 1;
  try {
    for (; started < count; ++started) threads.emplace_back(body, started);
  } catch (const std::system_error&) {
    // No more threads to be had: the rest is done here.
  }
  body(0);
  for (int64_t i = started; i < count; ++i) body(i);
  for (std::thread& t : threads) t.join();
}

}  // namespace

int64_t parallel_tasks() { return at::in_parallel_region() ? 1 : at::get_num_threads(); }

void run_tasks(int64_t count, bool parallel, const std::function<void(int64_t)>& body) {
  if (count <= 1 || !parallel || parallel_tasks() <= 1) {
    for (int64_t i = 0; i < count; ++i) body(i);
  } else if (forked.load()) {
    run_on_own_threads(count, body);
  } else {
    at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) body(i);
    });
  }
}

Plan plan(const Sizes& n, const int64_t* lengths, int64_t threads) {
  Plan p;
  p.splits = std::max<int64_t>(1, std::min(threads / n.D, n.B));
  std::vector<int64_t> order(n.B);
  std::iota(order.begin(), order.end(), 0);
  if (lengths) {
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return lengths[a] > lengths[b]; });
  }
  // Rows of equal length go to a task side by side; of unequal length, in turn, so that all tasks get long and short
  // ones.
  std::vector<int64_t> starts;
  for (int64_t k = 0; k < p.splits; ++k) {
    starts.push_back(int64_t(p.index.size()));
    if (lengths) {
      for (int64_t i = k; i < n.B; i += p.splits) p.index.push_back(order[i]);
    } else {
      for (int64_t i = n.B * k / p.splits; i < n.B * (k + 1) / p.splits; ++i) p.index.push_back(i);
    }
  }
  starts.push_back(n.B);
  for (int64_t d = 0; d < n.D; ++d) {
    for (int64_t k = 0; k < p.splits; ++k) {
      p.tasks.push_back({int(d), p.index.data() + starts[k], starts[k + 1] - starts[k]});
    }
  }
  return p;
}

}  // namespace birnn
