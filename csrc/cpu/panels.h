// A matrix packed for the micro-kernel, and the product with it.
//
// The N columns of a product are hidden units (or features), in vectors of L lanes; where a product yields several gates of a
// unit, the gates of the same L units stand side by side, so that one tile holds all that the cell equations need:
//
//   panel p = [K][G][units of the panel, in vectors of L]        `wide` vectors of units per panel, the last may have fewer
//   e.g. GRU:   k=0: | r of units 0..L-1 | z of units 0..L-1 | n of units 0..L-1 |   k=1: ...
//
// Lanes beyond N are zero. Not here: what is done with a tile (the epilogue is the caller's).
#pragma once

#include "tile.h"

namespace birnn {
namespace BIRNN_NS {

struct Shape {
  int64_t K, N;  // N: units, not counting gates
  int gates, wide;

  template <class T>
  int64_t vectors() const {
    return divide_up(N, lanes<T>);
  }
  template <class T>
  int64_t size() const {  // elements of the packed matrix, and K = 1: of a row of bias in the same order
    return K * row<T>();
  }
  template <class T>
  int64_t row() const {
    return vectors<T>() * gates * lanes<T>;
  }
};

// Vectors of units per panel: gates * wide is at most 3, or 4 where the gates alone are.
constexpr int panel_width(int gates) { return gates >= 3 ? 1 : 3 / gates; }

// Calls f(first vector of units, vectors of units, first row, rows, tile) for every tile of [M, K] x panels.
// Each panel is used for all rows while it is in the cache; `backwards` starts at the last panel, so that a matrix larger than
// a cache finds its tail still there.
template <class T, class F>
BIRNN_INLINE void product(const Shape& w, const T* packed, int64_t M, const T* a, int64_t lda, bool backwards, F&& f) {
  alignas(64) T out[max_tile_rows * max_tile_vectors * lanes<T>];
  const int64_t vectors = w.vectors<T>(), panels = divide_up(vectors, w.wide);
  for (int64_t i = 0; i < panels; ++i) {
    const int64_t first = (backwards ? panels - 1 - i : i) * w.wide;
    const int units = int(smaller<int64_t>(w.wide, vectors - first)), nv = units * w.gates;
    const T* panel = packed + first * w.gates * lanes<T> * w.K;
    // Each tile of this panel has its share of the next one fetched.
    const T* after = backwards ? panel - w.wide * w.gates * lanes<T> * w.K : panel + nv * lanes<T> * w.K;
    const int64_t count = divide_up(M, tile_rows(nv));  // tiles of nearly equal height: no tile of one row is left over
    for (int64_t t = 0, row = 0; t < count; ++t) {
      const int rows = int((M - row) / (count - t));
      const Tile<T> run = tiles<T, false>[nv - 1][rows - 1];
      run(w.K, a + row * lda, lda, panel, out, after + t * w.K * (64 / int64_t(sizeof(T))));
      f(first, units, row, rows, out);
      row += rows;
    }
  }
}

// c[m][n] (+)= sum over k of a[k][m] * b[k][n]: a gradient times what it was computed from. a and b have K rows of
// their own; b is packed (gates = 1); `strip` is room for K * max_tile_rows elements.
template <class T>
BIRNN_INLINE void product_transposed(const Shape& w, const T* packed, int64_t M, const T* a, int64_t lda, T* c, int64_t ldc,
                                     bool add, T* strip) {
  alignas(64) T out[max_tile_rows * max_tile_vectors * lanes<T>];
  constexpr int L = lanes<T>;
  const int64_t vectors = w.vectors<T>(), count = divide_up(M, tile_rows(w.wide));
  for (int64_t t = 0, m = 0; t < count; ++t) {
    const int rows = int((M - m) / (count - t));
    for (int64_t k = 0; k < w.K; ++k) {  // [K][rows], so that the micro-kernel reads consecutive addresses
      for (int r = 0; r < rows; ++r) strip[k * rows + r] = a[k * lda + m + r];
    }
    for (int64_t first = 0; first < vectors; first += w.wide) {
      const int nv = int(smaller<int64_t>(w.wide, vectors - first));
      const Tile<T> run = tiles<T, true>[nv - 1][rows - 1];
      const T* panel = packed + first * L * w.K;
      run(w.K, strip, 0, panel, out, panel);
      for (int r = 0; r < rows; ++r) {
        for (int j = 0; j < nv; ++j) {
          T* to = c + (m + r) * ldc + (first + j) * L;
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

// Transposes L rows of L elements in registers: log2(L) rounds, each of which swaps the off-diagonal blocks of half the size.
template <class T>
BIRNN_INLINE void transpose(Vec<T> (&v)[lanes<T>]) {
  constexpr int L = lanes<T>;
  typedef typename Simd<T>::Int Int;
#pragma GCC unroll 4
  for (int s = 1; s < L; s *= 2) {
    Int low, high;  // lane i of the new row comes from lane low[i] of (row, row + s) laid end to end
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      low[i] = i & s ? i - s + L : i;
      high[i] = i & s ? i + L : i + s;
    }
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if (i & s) continue;
      const Vec<T> a = v[i], b = v[i + s];
#if defined(__clang__)
      for (int l = 0; l < L; ++l) {
        v[i][l] = l & s ? b[l - s] : a[l];
        v[i + s][l] = l & s ? b[l] : a[l + s];
      }
#else
      v[i] = __builtin_shuffle(a, b, low);
      v[i + s] = __builtin_shuffle(a, b, high);
#endif
    }
  }
}

// Packs w [gates * H, K] (row-major, a row per unit) for products with its transpose: column n of gate g is row g * H + n.
template <class T>
BIRNN_INLINE void pack_rows(const Shape& s, const T* w, T* to) {
  constexpr int L = lanes<T>;
  const int64_t vectors = s.vectors<T>();
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t first = v / s.wide * s.wide, units = smaller<int64_t>(s.wide, vectors - first);
    const int64_t nv = units * s.gates, some = smaller<int64_t>(L, s.N - v * L);
    for (int g = 0; g < s.gates; ++g) {
      const T* from = w + (g * s.N + v * L) * s.K;
      T* at = to + first * s.gates * L * s.K + (g * units + v - first) * L;
      for (int64_t k = 0; k < s.K; k += L) {
        const int64_t ks = smaller<int64_t>(L, s.K - k);
        Vec<T> block[L];
        if (some == L && ks == L) {
#pragma GCC unroll 16
          for (int i = 0; i < L; ++i) block[i] = load(from + i * s.K + k);
        } else {
          for (int i = 0; i < L; ++i) block[i] = i < some ? load_some(from + i * s.K + k, ks) : Vec<T>{};
        }
        transpose<T>(block);
        if (ks == L) {
#pragma GCC unroll 16
          for (int i = 0; i < L; ++i) store(at + (k + i) * nv * L, block[i]);
        } else {
          for (int i = 0; i < ks; ++i) store(at + (k + i) * nv * L, block[i]);
        }
      }
    }
  }
}

// A bias [gates * H] in the order of a row of the packed matrix; null is zero.
template <class T>
BIRNN_INLINE void pack_bias(const Shape& s, const T* bias, T* to) {
  constexpr int L = lanes<T>;
  const int64_t vectors = s.vectors<T>();
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t first = v / s.wide * s.wide, units = smaller<int64_t>(s.wide, vectors - first);
    for (int g = 0; g < s.gates; ++g) {
      const Vec<T> b = bias ? load_some(bias + g * s.N + v * L, s.N - v * L) : Vec<T>{};
      store(to + (first * s.gates + g * units + v - first) * L, b);
    }
  }
}

// Packs row `k` of a matrix whose rows are the summed index (gates = 1); null is a row of zeros. One row at a time: they lie
// where time, batch and lengths put them.
template <class T>
BIRNN_INLINE void pack_row(const Shape& s, int64_t k, const T* row, T* to) {
  constexpr int L = lanes<T>;
  const int64_t vectors = s.vectors<T>();
  for (int64_t v = 0; v < vectors; ++v) {
    const int64_t first = v / s.wide * s.wide, units = smaller<int64_t>(s.wide, vectors - first);
    const Vec<T> x = row ? load_some(row + v * L, s.N - v * L) : Vec<T>{};
    store(to + first * L * s.K + (k * units + v - first) * L, x);
  }
}

}  // namespace BIRNN_NS
}  // namespace birnn
