// Tasks on torch's OpenMP threads, and the plan of who does what.
#include "pair.h"

#include <ATen/Parallel.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <numeric>
#include <thread>

#include "barrier.h"
#include "table.h"

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
    for (; started < count; ++started) threads.emplace_back(std::cref(body), started);
  } catch (...) {
    // No more threads to be had, or no memory for one: the rest is done here.
  }
  body(0);
  for (int64_t i = started; i < count; ++i) body(i);
  for (std::thread& t : threads) t.join();
}

// The same where the bodies wait for each other; if there are too few threads, calls `otherwise` instead of all of them.
void run_together_on_own_threads(int64_t count, const std::function<void(int64_t)>& body,
                                 const std::function<void()>& otherwise) {
  std::vector<std::thread> threads;
  threads.reserve(count);
  std::atomic<int> go{0};  // 1: all are there; -1: not all
  const auto wait_and_run = [&](int64_t i) {
    while (go.load() == 0) std::this_thread::yield();
    if (go.load() == 1) body(i);
  };
  bool all = true;
  try {
    for (int64_t i = 1; i < count; ++i) threads.emplace_back(wait_and_run, i);
  } catch (...) {
    all = false;
  }
  go.store(all ? 1 : -1);
  all ? body(0) : otherwise();
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

void run_teams(int64_t tasks, int members, bool parallel, bool meet, const std::function<void(int64_t, const Team&)>& body) {
  const auto alone = [&](int64_t task) { body(task, Team{}); };
  const bool together = AT_PARALLEL_OPENMP && (meet ? parallel && tasks * members > 1 && parallel_tasks() > 1 : members > 1);
  const int64_t count = tasks * members, pairs = meet ? tasks / 2 : 0;
  // (A thread pool that is not OpenMP's makes no promise that tasks run at the same time.)
  if (!together && !meet) return run_tasks(tasks, parallel, alone);
  if (!together) {
    run_tasks(pairs, parallel, alone);
    return run_tasks(pairs, parallel, [&](int64_t k) { alone(pairs + k); });
  }
  std::vector<Barrier> barriers(static_cast<size_t>(tasks), Barrier{members});
  std::vector<Crossing> crossings(static_cast<size_t>(pairs), Crossing{members});
  const auto member = [&](int64_t i) {
    const int64_t task = i / members;
    body(task, {int(i % members), members, &waiting, &barriers[task], meet ? &crossings[task % pairs] : nullptr});
  };
  // One that waits for another which has no thread would wait for ever. So nothing starts before all have theirs.
  const auto in_turn = [&] {
    for (int64_t i = 0; i < tasks; ++i) alone(i);
  };
  if (forked.load()) return run_together_on_own_threads(count, member, in_turn);
  at::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    // at::parallel_for hands thread k the range [k * chunk, (k + 1) * chunk): one each, or there are too few threads.
    const int64_t thread = at::get_thread_num(), chunk = thread ? begin / thread : end - begin;
    if (chunk == 1) return member(begin);
    if (thread == 0) in_turn();
  });
}

// Below this many multiply-adds a second thread costs more than it brings (starting one takes 2-3 us).
constexpr int64_t worth_a_thread = 100000;

bool worth_threads(const Sizes& n, int gates) { return n.T * n.B * gates * n.H * (n.I + n.P) >= worth_a_thread; }

// Multiply-adds of a step below which sharing it among more threads does not pay: waiting for each other takes about 1 us.
constexpr int64_t worth_a_member = 50000;
// Rows that a pass over the weights should serve: below this their way from the cache is what takes the time, and threads that
// share the rows would each go it.
constexpr int64_t rows_of_a_pass = 8;

// Whether the directions take turns. Where few rows meet recurrent weights that no cache near the core holds, reading these is
// all that takes time, at every step; a team of all threads on one direction has half as much of them per core to keep there. The
// more rows, the more arithmetic hides the reading. (EPYC, Zen 4, 2 cores, forward: 1.0 to 1.2 times as fast at H = 384 and 512,
// B = 1, 2, and 1.1 to 1.4 at H = 1024; at B = 8 from H = 768 on.)
bool take_turns(const Sizes& n, int gates, int64_t threads, int64_t element) {
  const int64_t share = n.D * gates * n.H * n.P * element / std::max<int64_t>(1, threads);
  const bool whole_team = gates * n.H * n.P * n.B >= threads * worth_a_member;
  return n.D > 1 && threads >= n.D && whole_team && n.B <= rows_of_a_pass &&
         share > l2_cache_bytes() * std::max<int64_t>(2, n.B);
}

Plan plan(const Sizes& n, int gates, const int64_t* lengths, int64_t threads, int64_t rows_of_a_task, int64_t element) {
  Plan p;
  p.turns = take_turns(n, gates, threads, element);
  const int64_t per_direction = p.turns ? threads : std::max<int64_t>(1, threads / n.D);
  const int64_t passes = std::max<int64_t>(1, std::min(per_direction, n.B / rows_of_a_pass));
  const int64_t step = gates * n.H * n.P * ((n.B + passes - 1) / passes);
  p.members = int(std::max<int64_t>(1, std::min(per_direction / passes, step / worth_a_member)));
  p.splits = p.turns ? 1 : std::max<int64_t>(1, std::min(per_direction / p.members, n.B / rows_of_a_task));
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
      p.tasks.push_back({int(d), p.index.data() + starts[k], starts[k + 1] - starts[k], nullptr});
    }
  }
  return p;
}

Plan plan_episodes(Sizes n, int gates, const int64_t* numbers, int64_t threads, int64_t rows_of_a_task, int64_t element) {
  std::vector<Episode> found;
  std::vector<int64_t> lengths;
  for (int64_t b = 0; b < n.B; ++b) {
    const int64_t* number = numbers + b * n.T;
    int64_t t = 0;
    do {
      Episode e = {b, t, 0, t == 0, false, t == 0 && number[0] > 1};
      while (t < n.T && number[t] > 0 && number[t] == number[e.begin]) ++t;
      e.length = t - e.begin, e.last = t == n.T || number[t] <= 0;
      found.push_back(e), lengths.push_back(e.length);
    } while (!found.back().last);
  }
  n.B = int64_t(found.size());
  Plan p = plan(n, gates, lengths.data(), threads, rows_of_a_task, element);
  for (int64_t& i : p.index) p.episodes.push_back(found[i]), i = found[i].row;
  for (Task& task : p.tasks) task.episodes = p.episodes.data() + (task.index - p.index.data());
  return p;
}

}  // namespace birnn
