// Runs the kernels of one and of many blocks without any torch library and prints a number for all that they have written, which
// is the same in every order of threads. With a thread of the operating system for every thread of a block (BIRNN_SHIM_THREADS)
// ThreadSanitizer watches: it reports what two threads touch with no barrier between. With fibers, mutants of the exchange are
// found out. Whether the numbers are right is test_backend.py's business.
#include <c10/util/Half.h>

#include <cstdio>
#include <cstring>

#include "cuda/kernels.h"
#include "engine.h"

using namespace birnn;
using namespace birnn::cuda;

namespace {

struct Hash {
  uint64_t value = 14695981039346656037u;  // FNV-1a

  template <class T>
  void add(const std::vector<T>& numbers) {
    for (const T x : numbers) {
      uint32_t bits = 0;
      std::memcpy(&bits, &x, sizeof(x));
      value = (value ^ bits) * 1099511628211u;
    }
  }
};

struct Room {
  std::vector<uint64_t> words;

  Exchange exchange(int64_t count) {
    words.assign(size_t(count), 0);
    return {words.data(), words.data() + count - 1, alarm(), shim::setting("BIRNN_CUDA_PATIENCE", 1'000'000'000)};
  }
};

std::mt19937 random_numbers(1);
template <class T>
std::vector<T> numbers(int64_t count) {
  std::vector<T> v(static_cast<size_t>(count));
  for (T& x : v) x = T(float(random_numbers() % 2001) / 1000 - 1);
  return v;
}

// A kind of kernels, and the multiprocessors on which so many rows of floats (of halves: one) are one group in so many parts (for
// halves perhaps fewer), of which one may have no units.
struct Kind {
  const char *name, *multiprocessors;
  int rows, parts;
  Plan (*plan)(const Sizes&, bool, const Launch&);
  void (*forward)(const ForwardChunk&, const Launch&);
  void (*backward)(const BackwardChunk&, const Launch&);
};
const Kind kinds[] = {
    {"block", "1", 5, 0, [](const Sizes&, bool, const Launch&) { return Plan(); }, &forward_block, &backward_block},
    {"spread", "3", 2, 3, &spread_plan, &forward_spread, &backward_spread},
    {"cluster", "4", 3, 4, &cluster_plan, &forward_cluster, &backward_cluster},
};

// Both passes of one direction. More steps than two turns of the slots.
template <class T>
void run(Hash& hash, Mode mode, int dir, const Kind& kind) {
  const int64_t steps = 6, B = !kind.parts || sizeof(T) == 4 ? kind.rows : 1, H = 9;
  const int64_t lengths[] = {5, 2, 0, 1, 5};
  const int64_t G = mode == GRU ? 3 : 4, C = 4, S = mode == GRU ? 4 : 5;
  std::vector<T> w = numbers<T>(G * H * H), b = numbers<T>(G * H), h = numbers<T>(B * H), y = numbers<T>(steps * B * H);
  std::vector<T> saved = numbers<T>(steps * B * S * H), dy = numbers<T>(steps * B * H), dg = numbers<T>(steps * B * C * H);
  std::vector<float> pre = numbers<float>(steps * B * G * H), c = numbers<float>(B * H), carry = c, dc = c;
  Room there, back;
  std::vector<shim::Queue> queues(1);
  const Launch launch = {sizeof(T) == 4 ? Dtype::F32 : Dtype::F16, mode, &queues[0]};
  ForwardChunk f = {};
  f.n = {steps, B, 1, H, H, 1, false}, f.dir = dir, f.t_end = steps, f.lengths = lengths;
  f.pre = pre.data(), f.w_hh = w.data(), f.b_ih = b.data(), f.b_hh = b.data(), f.h = h.data(), f.c = c.data();
  f.y = y.data(), f.y_t = B * H, f.y_b = H, f.saved = saved.data();
  f.plan = kind.plan(f.n, false, launch);
  f.exchange = there.exchange(spread_words(f.n, false, launch) + 1);
  kind.forward(f, launch);
  BackwardChunk q = {};
  q.n = f.n, q.dir = dir, q.t_end = steps, q.lengths = lengths, q.saved = saved.data(), q.y = y.data(), q.y_t = B * H,
  q.y_b = H;
  q.dy = dy.data(), q.dy_t = B * H, q.dy_b = H, q.w_hh = w.data();
  q.carry = carry.data(), q.dc = dc.data(), q.dg = dg.data();
  q.plan = kind.plan(q.n, true, launch);
  q.exchange = back.exchange(spread_words(q.n, true, launch) + 1);
  kind.backward(q, launch);
  for (const Plan& p : {f.plan, q.plan}) {
    // With fewer blocks there would be nothing to see.
    if (kind.parts && (p.groups != 1 || p.splits < (sizeof(T) == 4 ? kind.parts : 2))) std::abort();
  }
  shim::drain(queues);
  for (const auto* written : {&h, &y, &saved, &dg}) hash.add(*written);
  for (const auto* written : {&c, &carry, &dc}) hash.add(*written);
}

}  // namespace

// The kinds that are named, or all.
int main(int count, char** names) {
  for (const Kind& kind : kinds) {
    bool wanted = count == 1;
    for (int i = 1; i < count; ++i) wanted = wanted || names[i] == std::string(kind.name);
    if (!wanted) continue;
    setenv("BIRNN_SHIM_MULTIPROCESSORS", kind.multiprocessors, 1);
    Hash hash;
    for (const Mode mode : {GRU, LSTM}) {
      for (int dir = 0; dir < 2; ++dir) {
        run<float>(hash, mode, dir, kind);
        run<c10::Half>(hash, mode, dir, kind);
      }
    }
    std::printf("%s %016llx%s\n", kind.name, static_cast<unsigned long long>(hash.value), take_alarm() ? " gave up" : "");
  }
}
