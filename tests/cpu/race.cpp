// Runs the sweeps of teams of threads, both directions at once, without any torch library, for ThreadSanitizer: it reports what two
// threads touch with no wait between. Whether the numbers are right is the business of test_teams.py.
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

// f(direction, team), in all members of the teams of both directions.
template <class F>
void as_teams(bool meet, F&& f) {
  Barrier barriers[2] = {Barrier(members), Barrier(members)};
  Crossing crossing(members);
  std::vector<std::thread> threads;
  for (int i = 0; i < 2 * members; ++i) {
    const int dir = i / members;
    const Team team{i % members, members, &waiting, &barriers[dir], meet ? &crossing : nullptr};
    threads.emplace_back([=, &f] { f(dir, team); });
  }
  for (std::thread& t : threads) t.join();
}

// Both passes over rows of these lengths or, where `episodes` is not 0, that many a row, of one step each. `meet`: the directions
// write one dx.
template <class S, class Cell>
void run(const std::vector<int64_t>& lengths, int64_t T, bool projected, bool meet, int64_t episodes = 0) {
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
  const Task tasks[2] = {{0, index.data(), int64_t(index.size()), episodes ? parts.data() : nullptr},
                         {1, index.data(), int64_t(index.size()), episodes ? parts.data() : nullptr}};

  Forward<S> f = {};
  f.n = {T, B, I, H, P, 2, projected};
  f.x = x.data(), f.x_t = B * I, f.x_b = I, f.h0 = h0.data(), f.c0 = c0.data();
  f.lengths = episodes ? nullptr : lengths.data();
  f.w[0] = f.w[1] = {w_ih.data(), w_hh.data(), b.data(), b.data(), projected ? w_hr.data() : nullptr};
  f.y = y.data(), f.y_t = B * 2 * P, f.y_b = 2 * P, f.h_n = h_n.data(), f.c_n = c_n.data(), f.saved = saved.data();
  typedef base::ForwardSweep<S, Cell> Forth;
  const int64_t packed = Forth::packed_size(f.n), scratch = Forth::scratch_size(f, tasks[0], no_cache);
  Memory memory[2] = {Memory(packed), Memory(packed)}, own[2] = {Memory(scratch), Memory(scratch)};
  as_teams(false,
           [&](int dir, const Team& team) { Forth::run(f, tasks[dir], team, false, memory[dir].at, own[dir].at, no_cache); });

  std::vector<S> dx[2] = {x, x}, dh0(h0), dc0(c0);
  Backward<S> q = {};
  q.f = f, q.dy = dy.data(), q.dy_t = f.y_t, q.dy_b = f.y_b, q.dh_n = h0.data(), q.dc_n = c0.data();
  q.dx[0] = dx[0].data(), q.dx[1] = dx[meet ? 0 : 1].data(), q.dx_t = f.x_t, q.dx_b = f.x_b, q.dh0 = dh0.data(),
  q.dc0 = dc0.data();
  q.want_weights = true;
  typedef base::BackwardSweep<S, Cell> Back;
  const int64_t packed_back = Back::packed_size(q), scratch_back = Back::scratch_size(q, tasks[0], {0, members}, no_cache);
  Memory memory_back[2] = {Memory(packed_back), Memory(packed_back)},
         own_back[2] = {Memory(scratch_back), Memory(scratch_back)};
  std::vector<float> dw_ih[2], dw_hh[2], db_ih[2], db_hh[2], dw_hr[2];
  Gradients<float> out[2];
  for (int dir = 0; dir < 2; ++dir) {
    dw_ih[dir].resize(w_ih.size()), dw_hh[dir].resize(w_hh.size()), dw_hr[dir].resize(w_hr.size());
    db_ih[dir].resize(b.size()), db_hh[dir].resize(b.size());
    out[dir] = {dw_ih[dir].data(), dw_hh[dir].data(), db_ih[dir].data(), db_hh[dir].data(),
                projected ? dw_hr[dir].data() : nullptr};
  }
  as_teams(meet, [&](int dir, const Team& team) {
    Back::run(q, tasks[dir], team, out[dir], nullptr, false, memory_back[dir].at, own_back[dir].at, no_cache);
  });
}

template <class S>
void run_all() {
  run<S, base::Gru>({70, 61, 2}, 70, false, false);  // several chunks both ways
  run<S, base::Lstm>({3, 2}, 4, true, false);
  run<S, base::Lstm>({60, 60, 60}, 60, true, true);
  run<S, base::Gru>({61, 61, 61}, 61, false, true);
  run<S, base::Gru>({1, 1, 1}, 1, false, true);
  run<S, base::Gru>({0, 0, 0}, 2, false, false);
  run<S, base::Gru>({0, 0, 0, 0}, 70, false, false, 70);  // more episodes than go through time at once
  run<S, base::Lstm>({0, 0, 0, 0}, 70, true, false, 70);
}

}  // namespace

int main() {
  run_all<float>();
  run_all<bfloat16>();  // in pairs of steps
  std::puts("done");
}
