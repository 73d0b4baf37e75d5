// Products with a packed matrix. Not here: what is done with a tile (the epilogue is the caller's).
#pragma once

#include "dots.h"
#include "pack.h"
#include "tile.h"

namespace birnn {
namespace BIRNN_NS {

// How many rows of its panel a tile of few rows fetches ahead, 0 for none. Intel's processors gain 10 to 20 % where panels come from
// L3 (measured on a Skylake-SP, with a prototype); a Zen 4 foresees the stream by itself, and takes up to 30 % longer if it is helped.
BIRNN_INLINE int64_t rows_ahead() {
#if defined(__x86_64__)
  return __builtin_cpu_is("intel") ? 8 : 0;
#else
  return 0;
#endif
}

// A tile of a panel of [K, N] that is not packed: its rows up to the last row of the weight, then, where they are shifted, those
// from the first row on.
template <class T>
BIRNN_INLINE void tile_in_place(const Matrix<T>& w, int64_t p, int rows, const T* a, int64_t lda, T* out) {
  constexpr int L = lanes<T>;
  const int units = w.units(p);
  const int64_t K = w.s.K, N = w.s.N, before = K - w.shift;
  const T* panel = w.raw + w.first(p) * L;
  const Tile<T> run = tiles<T, PLAIN>[units - 1][rows - 1];
  const int64_t reach = rows < few_rows ? 8 * N : 0;  // rows that lie far apart are a stream that no processor foresees
  run(before, a, lda, panel + w.shift * N, N, out, panel + w.shift * N + reach);
  if (w.shift == 0) return;
  alignas(64) T rest[max_tile_rows * max_tile_vectors * L];
  run(w.shift, a + before, lda, panel, N, rest, panel + reach);
  for (int i = 0; i < rows * units * L; i += L) store(out + i, load(out + i) + load(rest + i));
}

// Calls f(first vector of units, vectors of units, first row, rows, tile) for every tile of [M, K] x this thread's panels.
// Each panel is used for all rows while it is in the cache; `backwards` starts at the last panel, so that a matrix larger than
// a cache finds its tail still there.
template <class S, class F>
BIRNN_INLINE void product(Matrix<S>& w, int64_t M, const Operand<S>* a, int64_t lda, bool backwards, F&& f) {
  if (M == 0) return;
  typedef Operand<S> A;
  typedef Wide<S> T;
  alignas(64) T out[max_tile_rows * max_tile_vectors * lanes<T>];
  constexpr int L = lanes<T>;
  const int64_t K = w.s.K, begin = w.begin(), end = w.end(), reach = rows_ahead();
  for (int64_t i = begin; i < end; ++i) {
    const int64_t p = backwards ? begin + end - 1 - i : i, after = backwards ? p - 1 : p + 1;
    const int units = w.units(p), nv = units * w.s.gates;
    const bool whole = (w.first(p) + units) * L <= w.s.N, in_place = w.direct && (w.by_columns || whole);
    if (w.raw && !in_place) w.pack(p);
    const T* panel = w.at(p);
    const T* next = w.raw ? panel : w.at(after);  // each tile of this panel has its share of the next one fetched
    // Tiles of nearly equal height: no tile of one row is left over.
    const int64_t count = divide_up(M, in_place && w.by_columns ? max_dot_rows : tile_rows(nv));
    for (int64_t t = 0, row = 0; t < count; ++t) {
      const int rows = int((M - row) / (count - t));
      const A* from = a + row * lda;
      if (!in_place) {
        const Form form = w.s.pairs && !paired<A> ? PAIRS : PLAIN;
        const Tile<A> run = form == PAIRS ? tiles<A, PAIRS>[nv - 1][rows - 1] : tiles<A, PLAIN>[nv - 1][rows - 1];
        const T* own = reach ? panel + reach * nv * L : nullptr;
        const T* ahead = rows < few_rows ? own : next + t * w.s.depth() * (64 / int64_t(sizeof(T)));
        run(K, from, lda, panel, nv * L, out, ahead);
      } else if (w.by_columns) {
        tile_of_dots(w.s, w.raw, w.first(p), units, rows, from, lda, out);
      } else if constexpr (Matrix<S>::in_place) {
        tile_in_place(w, p, rows, from, lda, out);
      }
      f(w.first(p), units, row, rows, out);
      row += rows;
    }
  }
  if (!w.once && !w.direct) w.raw = nullptr;
}

// `rows` columns of a [K, ...] as [K][rows], or [K / 2][rows] words of pairs, so that the micro-kernel reads consecutive addresses.
template <class A>
BIRNN_INLINE void fill_strip(int64_t K, int rows, const A* a, int64_t lda, A* strip) {
  if constexpr (paired<A>) {
    for (int64_t k = 0; k < K; k += 2, a += 2 * lda) {
      for (int r = 0; r < rows; ++r) *strip++ = a[r], *strip++ = k + 1 < K ? a[lda + r] : A{};
    }
  } else {
    for (int64_t k = 0; k < K; ++k, a += lda) {
      for (int r = 0; r < rows; ++r) *strip++ = a[r];
    }
  }
}

// c[m][n] (+)= sum over k of a[k][m] * b[k][n], begin <= m < M: a gradient times what it was computed from. a and b have K
// rows of their own; b is packed (gates = 1); `strip` is room for (K + 1) * max_tile_rows elements.
template <class A, class C, class T = Wide<A>>
BIRNN_INLINE void product_transposed(const Shape& w, const T* packed, int64_t begin, int64_t M, const A* a, int64_t lda, C* c,
                                     int64_t ldc, bool add, A* strip) {
  alignas(64) T out[max_tile_rows * max_tile_vectors * lanes<T>];
  constexpr int L = lanes<T>;
  const int64_t vectors = w.vectors<T>(), count = divide_up(M - begin, tile_rows(w.wide));
  for (int64_t t = 0, m = begin; t < count; ++t) {
    const int rows = int((M - m) / (count - t));
    fill_strip(w.K, rows, a + m, lda, strip);
    for (int64_t first = 0; first < vectors; first += w.wide) {
      const int nv = int(smaller<int64_t>(w.wide, vectors - first));
      const Tile<A> run = tiles<A, INTERLEAVED>[nv - 1][rows - 1];
      const T* panel = packed + first * L * w.depth();
      run(w.K, strip, 0, panel, nv * L, out, panel);
      for (int r = 0; r < rows; ++r) {
        for (int j = 0; j < nv; ++j) {
          C* to = c + (m + r) * ldc + (first + j) * L;
          const int64_t some = w.N - (first + j) * L;
          Vec<T> v = load(out + (r * nv + j) * L);
          if (add) v += load_some(to, some);
          store_some(to, v, some);
        }
      }
    }
    m += rows;
  }
}

}  // namespace BIRNN_NS
}  // namespace birnn
