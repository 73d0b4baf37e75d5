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
template <class T, int MR>
__attribute__((noinline)) void dots(int64_t K, const T* __restrict__ a, int64_t lda, const T* const* w, const T* ahead,
                                    T* __restrict__ sums) {
  constexpr int L = lanes<T>, NR = dot_columns<T>(MR), line = 64 / int(sizeof(T));
  Vec<T> sum[MR][NR];
#pragma GCC unroll 48
  for (int i = 0; i < MR * NR; ++i) sum[i / NR][i % NR] = Vec<T>{};
  const auto step = [&](int64_t k, int64_t some) __attribute__((always_inline)) {
    Vec<T> wk[NR];
#pragma GCC unroll 8
    for (int i = 0; i < NR; ++i) wk[i] = load_some(w[i] + k, some);
#pragma GCC unroll 8
    for (int r = 0; r < MR; ++r) {
      const Vec<T> ak = load_some(a + r * lda + k, some);
#pragma GCC unroll 8
      for (int i = 0; i < NR; ++i) sum[r][i] += ak * wk[i];
    }
  };
  int64_t k = 0;
  for (; k + L <= K; k += L) {
#pragma GCC unroll 8
    for (int i = 0; i < NR * L; i += line) __builtin_prefetch(ahead + k * NR + i, 0, 2);
    step(k, L);
  }
  if (k < K) step(k, K - k);
#pragma GCC unroll 8
  for (int r = 0; r < MR; ++r) {
#pragma GCC unroll 8
    for (int i = 0; i < NR; ++i) store(sums + (r * L + i) * L, sum[r][i]);
  }
}

template <class T>
using Dots = void (*)(int64_t, const T*, int64_t, const T* const*, const T*, T*);
template <class T>
constexpr Dots<T> all_dots[max_dot_rows] = {&dots<T, 1>, &dots<T, 2>, &dots<T, 3>, &dots<T, 4>, &dots<T, 5>, &dots<T, 6>};

// What a tile of `rows` rows and the panel of `units` vectors of columns from vector `first` on would leave in `out`.
template <class T>
BIRNN_INLINE void tile_of_dots(const Shape& s, const T* w, int64_t first, int units, int rows, const T* a, int64_t lda,
                               T* out) {
  constexpr int L = lanes<T>;
  alignas(64) T sums[max_dot_rows * L * L];
  const int nv = units * s.gates, together = dot_columns<T>(rows);
  const Dots<T> run = all_dots<T>[rows - 1];
  for (int j = 0; j < nv; ++j) {
    const int64_t unit = (first + j % units) * L;
    const T* from = w + (j / units * s.N + unit) * s.K;
    for (int i = 0; i < L; i += together) {
      const T* columns[8];  // lanes beyond N repeat the last column: nobody reads them, but they have to be numbers
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
