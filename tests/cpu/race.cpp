// Runs the sweeps of teams of threads, without any torch library, for ThreadSanitizer: it reports what two members touch with no
// wait between. Whether the numbers are right is test_teams.py's business.
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

// The wait that a mutant leaves out, by its number in the text (test_race.py); 0: none.
const int left_out = std::getenv("BIRNN_LEFT_OUT") ? std::atoi(std::getenv("BIRNN_LEFT_OUT")) : 0;

#define BIRNN_NS base
// What a processor may have: products of pairs of bfloat16.
#define BIRNN_BF16_DOT(sum, a, b) (sum + upper_half(a) * upper_half(b) + lower_half(a) * lower_half(b))
#define BIRNN_VECTOR_BYTES 16
#define BIRNN_VECTOR_REGISTERS 16
#include "cpu/simd_math.h"
// (Math before the cells, which call it.)
#include "cells/cells.h"
#include "cpu/backward.inl"
#include "cpu/barrier.h"
#include "cpu/forward.inl"

namespace {

using namespace birnn;

constexpr int members = 3;
constexpr int64_t no_cache = 1;  // so that chunks are as short as they get

std::mt19937 random_numbers(1);
template <class S>
std::vector<S> numbers(int64_t count) {
  std::vector<float> v(static_cast<size_t>(count));
  for (float& x : v) x = float(random_numbers() % 2001) / 1000 - 1;
  std::vector<S> as(v.size());
  base::copy(as.data(), v.data(), count);
  return as;
}

// Scratch memory of the kernels, aligned.
struct Memory {
  std::vector<float> room;
  float* at;

  explicit Memory(int64_t count) : room(static_cast<size_t>(count + 16)), at(room.data()) {
    while (reinterpret_cast<uintptr_t>(at) % 64) ++at;
  }
};

template <class F>
void as_team(F&& f) {
  Barrier barrier(members);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < members; ++rank) {
    threads.emplace_back([&, rank] { f(Team{rank, members, [](void* b) { static_cast<Barrier*>(b)->wait(); }, &barrier}); });
  }
  for (std::thread& t : threads) t.join();
}

// Both passes of one direction over rows of these lengths or, where `episodes` is not 0, that many a row, of one step each.
template <class S, class Cell>
void run(const std::vector<int64_t>& lengths, int64_t T, bool projected, int dir, int64_t episodes = 0) {
  constexpr int64_t G = Cell::gates;
  const int64_t B = int64_t(lengths.size()), I = 40, H = 44, P = projected ? 40 : H;  // several panels for each member
  const auto some = [](int64_t count) { return numbers<S>(count); };
  const std::vector<S> x = some(T * B * I), h0 = some(2 * B * P), c0 = some(2 * B * H), w_ih = some(G * H * I),
                       w_hh = some(G * H * P), b = some(G * H), w_hr = some(P * H), dy = some(T * B * 2 * P);
  std::vector<S> y(size_t(T * B * 2 * P)), h_n(h0), c_n(c0), saved(size_t(2 * T * B * Cell::saved * H + 1));
  std::vector<int64_t> index;
  std::vector<Episode> parts;
  for (int64_t i = 0; i < B; ++i) {
    if (!episodes) index.push_back(i);
    for (int64_t k = 0; k < episodes; ++k) {
      index.push_back(i), parts.push_back({i, k, 1, k == 0, k + 1 == episodes, false});
    }
  }
  const Task task = {dir, index.data(), int64_t(index.size()), episodes ? parts.data() : nullptr};

  Forward<S> f = {};
  f.n = {T, B, I, H, P, 2, projected};
  f.x = x.data(), f.x_t = B * I, f.x_b = I, f.h0 = h0.data(), f.c0 = c0.data();
  f.lengths = episodes ? nullptr : lengths.data();
  f.w[0] = f.w[1] = {w_ih.data(), w_hh.data(), b.data(), b.data(), projected ? w_hr.data() : nullptr};
  f.y = y.data(), f.y_t = B * 2 * P, f.y_b = 2 * P, f.h_n = h_n.data(), f.c_n = c_n.data(), f.saved = saved.data();
  typedef base::ForwardSweep<S, Cell> Forth;
  Memory packed(Forth::packed_size(f.n)), scratch(Forth::scratch_size(f, task, no_cache));
  as_team([&](const Team& team) { Forth::run(f, task, team, false, packed.at, scratch.at, no_cache); });

  std::vector<S> dx(x), dh0(h0), dc0(c0);
  std::vector<float> dw_ih(w_ih.size()), dw_hh(w_hh.size()), db_ih(b.size()), db_hh(b.size()), dw_hr(w_hr.size());
  Backward<S> q = {};
  q.f = f, q.dy = dy.data(), q.dy_t = f.y_t, q.dy_b = f.y_b, q.dh_n = h0.data(), q.dc_n = c0.data();
  q.dx[0] = q.dx[1] = dx.data(), q.dx_t = f.x_t, q.dx_b = f.x_b, q.dh0 = dh0.data(), q.dc0 = dc0.data();
  q.want_weights = true;
  const Gradients<float> out = {dw_ih.data(), dw_hh.data(), db_ih.data(), db_hh.data(), projected ? dw_hr.data() : nullptr};
  typedef base::BackwardSweep<S, Cell> Back;
  Memory packed_back(Back::packed_size(q)), scratch_back(Back::scratch_size(q, task, {0, members}, no_cache));
  as_team([&](const Team& team) { Back::run(q, task, team, out, nullptr, false, packed_back.at, scratch_back.at, no_cache); });
}

template <class S>
void run_all() {
  run<S, base::Gru>({70, 61, 2}, 70, false, 0);  // several chunks both ways
  run<S, base::Lstm>({3, 2}, 4, true, 1);
  run<S, base::Lstm>({60, 60, 60}, 60, true, 0);
  run<S, base::Gru>({0, 0, 0}, 2, false, 1);
  run<S, base::Gru>({0, 0, 0, 0}, 70, false, 0, 70);  // more episodes than go through time at once
  run<S, base::Lstm>({0, 0, 0, 0}, 70, true, 1, 70);
}

}  // namespace

int main() {
  run_all<float>();
  run_all<bfloat16>();  // in pairs of steps
  std::puts("done");
}
