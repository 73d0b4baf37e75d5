// Products straight from a weight as it came, [columns, K], a row per column: every element of the result is a dot product of two
// rows. For few rows: no panel is packed, which takes about as long as multiplying with it log2(L) + 2 times (L lanes).
//
//   w row i     | k=0 .. L-1 | L .. 2L-1 | ...      multiplied lane by lane with a row of a; the L sums of lanes of L columns are
//   w row i+1   | k=0 .. L-1 | ...                  an [L][L] block, and its rows, added up after a transposition, are one vector
//                                                   of L columns: the order in which a tile (tile.h) leaves its results
//
// Not here: when this pays (pack.h).
#pragma once

#include "pack.h"
#include "tile.h"

namespace birnn {
namespace BIRNN_NS {

constexpr int max_dot_rows = 6;

// Rows of w side by side: as many as the register file holds sums for, beside a vector of each and one of a.
template <class T>
constexpr int dot_columns(int mr) {
  int n = lanes<T> < 8 ? lanes<T> : 8;
  while (n > 1 && mr * n + n + 1 > BIRNN_VECTOR_REGISTERS) n /= 2;
  return n;
}

// sums[(r * L + i) * L + lane]: the sums over k of a[r][k] * w[i][k], lane by lane, i < NR. The K * NR elements from `ahead` on
// are fetched meanwhile.
template <class S, int MR, class A = Operand<S>, class T = Wide<S>>
__attribute__((noinline)) void dots(int64_t K, const A* __restrict__ a, int64_t lda, const S* const* w, const S* ahead,
                                    T* __restrict__ sums) {
  constexpr int L = lanes<T>, NR = dot_columns<T>(MR), line = 64 / int(sizeof(S));
  constexpr int LK = paired<A> ? 2 * L : L;  // indices k of a vector
  Vec<T> sum[MR][NR];
#pragma GCC unroll 48
  for (int i = 0; i < MR * NR; ++i) sum[i / NR][i % NR] = Vec<T>{};
  const auto step = [&](int64_t k, int64_t some) __attribute__((always_inline)) {
    Vec<T> wk[NR];
#pragma GCC unroll 8
    for (int i = 0; i < NR; ++i) {
      wk[i] = load_words(w[i] + k, some);
      if (MR > 1) hold(wk[i]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const Vec<T> ak = load_words<A, A>(a + r * lda + k, some);
#pragma GCC unroll 8
      for (int i = 0; i < NR; ++i) sum[r][i] = multiply_add<A>(sum[r][i], ak, wk[i]);
    }
  };
  int64_t k = 0;
  for (; k + LK <= K; k += LK) {
#pragma GCC unroll 8
    for (int i = 0; i < NR * LK; i += line) __builtin_prefetch(ahead + k * NR + i, 0, 2);
    step(k, LK);
  }
  if (k < K) step(k, K - k);
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < NR; ++i) store(sums + (r * L + i) * L, sum[r][i]);
  }
}

template <class S>
using Dots = void (*)(int64_t, const Operand<S>*, int64_t, const S* const*, const S*, Wide<S>*);
template <class S>
constexpr Dots<S> all_dots[max_dot_rows] = {&dots<S, 1>, &dots<S, 2>, &dots<S, 3>, &dots<S, 4>, &dots<S, 5>, &dots<S, 6>};

// What a tile of `rows` rows and the panel of `units` vectors of columns from vector `first` on would leave in `out`.
template <class S, class T = Wide<S>>
BIRNN_INLINE void tile_of_dots(const Shape& s, const S* w, int64_t first, int units, int rows, const Operand<S>* a, int64_t lda,
                               T* out) {
  constexpr int L = lanes<T>;
  alignas(64) T sums[max_dot_rows * L * L];
  const int nv = units * s.gates, together = dot_columns<T>(rows);
  const Dots<S> run = all_dots<S>[rows - 1];
  for (int j = 0; j < nv; ++j) {
    const int64_t unit = (first + j % units) * L;
    const S* from = w + (j / units * s.N + unit) * s.K;
    for (int i = 0; i < L; i += together) {
      const S* columns[8];  // lanes beyond N repeat the last column: nobody reads them, but they have to be numbers
      for (int c = 0; c < together; ++c) columns[c] = from + smaller<int64_t>(i + c, s.N - 1 - unit) * s.K;
      run(s.K, a, lda, columns, from + (i + together) * s.K, sums + i * L);
    }
    for (int r = 0; r < rows; ++r) {
      Vec<T> block[L];
#pragma GCC unroll 16
      for (int i = 0; i < L; ++i) block[i] = load(sums + (r * L + i) * L);
      transpose<T>(block);
#pragma GCC unroll 4
      for (int some = L / 2; some > 0; some /= 2) {
#pragma GCC unroll 8
        for (int i = 0; i < some; ++i) block[i] += block[i + some];
      }
      store(out + (r * nv + j) * L, block[0]);
    }
  }
}

}  // namespace BIRNN_NS
}  // namespace birnn
