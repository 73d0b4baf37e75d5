// Packing: a matrix as the micro-kernel reads it.
//
// The N columns of a product are hidden units (or features), in vectors of L lanes; where a product yields several gates of a
// unit, the gates of the same L units stand side by side, so that one tile holds all that the cell equations need:
//
//   panel p = [K][G][units of the panel, in vectors of L]        `wide` vectors of units per panel, the last may have fewer
//   e.g. GRU:   k=0: | r of units 0..L-1 | z of units 0..L-1 | n of units 0..L-1 |   k=1: ...
//   pairs:      k=0 and 1 in the words of one such row, k=2 and 3 in the next (tile.h, operand.h)
//
// Lanes beyond N are zero. Not here: products (panels.h), and back from panels to a weight (unpack.h).
#pragma once

#include <utility>

#include "../layer.h"
#include "operand.h"
#include "tile.h"

namespace birnn {
namespace BIRNN_NS {

struct Shape {
  int64_t K, N;  // N: units, not counting gates
  int gates, wide;
  bool pairs = false;  // two weights to a word

  int64_t depth() const { return pairs ? divide_up(K, 2) : K; }  // rows of a panel

  template <class T>
  int64_t vectors() const {
    return divide_up(N, lanes<T>);
  }
  template <class T>
  int64_t size() const {  // elements of the packed matrix
    return depth() * row<T>();
  }
  template <class T>
  int64_t row() const {  // elements of row k of all panels, and of a bias in the same order
    return vectors<T>() * gates * lanes<T>;
  }
};

// Vectors of units per panel: gates * wide is at most 3, or 4 where the gates alone are.
constexpr int panel_width(int gates) { return gates >= 3 ? 1 : 3 / gates; }

// Every second unit of a and b within a span, a's before b's; lane i comes from lane source(i) of the two laid end to end. (The
// lanes are written out as constants: of a vector of them GCC makes a general permutation.)
template <class T, int unit, int span, int odd, int... i>
BIRNN_INLINE Vec<T> every_second(Vec<T> a, Vec<T> b, std::integer_sequence<int, i...>) {
  constexpr auto source = [](int lane) {
    const int place = lane % span / unit, half = span / unit / 2;
    return place / half * lanes<T> + lane / span * span + (place % half * 2 + odd) * unit + lane % unit;
  };
#if defined(__clang__)
  return __builtin_shufflevector(a, b, std::integral_constant<int, source(i)>::value...);
#else
  return __builtin_shuffle(a, b, typename Simd<T>::Int{std::integral_constant<int, source(i)>::value...});
#endif
}

// Transposes L rows of L elements in registers, in log2(L) rounds: of two rows one gets what has an even place, the other what has
// an odd one; first elements within 16 bytes, then 16 bytes at a time. Both are one instruction, and need no register that says
// which element goes where (packing is 2.5 times as fast as by swaps across whole vectors).
template <class T, int apart = 1>
BIRNN_INLINE void transpose(Vec<T> (&v)[lanes<T>]) {
  constexpr int L = lanes<T>, E = 16 / int(sizeof(T)), unit = apart < E ? 1 : E, span = apart < E ? E : L;
  constexpr std::make_integer_sequence<int, L> all{};
  if constexpr (apart < L) {
#pragma GCC unroll 16
    for (int i = 0; i < L; ++i) {
      if (i & apart) continue;
      const Vec<T> a = v[i], b = v[i + apart];
      v[i] = every_second<T, unit, span, 0>(a, b, all);
      v[i + apart] = every_second<T, unit, span, 1>(a, b, all);
    }
    transpose<T, 2 * apart>(v);
  }
}

// Packs the panel of `units` vectors of columns from vector `first` on, out of w [gates * N, K]: a row per column.
// L rows are read side by side, a pattern that a processor does not foresee; but together they are one stretch of memory, and
// so are the L rows that come next: these are fetched front to back (T = 1: 1.3 to 1.7 times as fast).
template <class S, class T = Wide<S>>
BIRNN_INLINE void pack_columns(const Shape& s, const S* w, int64_t first, int units, T* to) {
  constexpr int L = lanes<T>, line = 64 / int(sizeof(S));
  constexpr int deep = paired<Operand<S>> ? 2 : 1;  // elements of a word
  const int64_t nv = units * s.gates;
  const auto column = [&](int64_t j) { return j / units * s.N + (first + j % units) * L; };
  for (int64_t j = 0; j < nv; ++j) {
    const int64_t some = smaller<int64_t>(L, s.N - (first + j % units) * L);
    const S* from = w + column(j) * s.K;
    const S* next = w + (j + 1 < nv ? column(j + 1) : (first + units) * L) * s.K;  // (past the end is no fault in a prefetch)
    T* at = to + j * L;
    for (int64_t k = 0; k < s.depth(); k += L, next += L * L * deep) {
      const int64_t ks = smaller<int64_t>(L, s.depth() - k), left = s.K - k * deep;
      Vec<T> block[L];
      if (some == L && left >= L * deep) {
#pragma GCC unroll 16
        for (int i = 0; i < L; ++i) {
          if (i * L * deep % line == 0) __builtin_prefetch(next + i * L * deep, 0, 2);
          block[i] = load_words(from + i * s.K + k * deep, L * deep);
        }
      } else {
        for (int i = 0; i < L; ++i) block[i] = i < some ? load_words(from + i * s.K + k * deep, left) : Vec<T>{};
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

// A word of two weights: the lower half is the bfloat16 nearest to b, the upper half such that the whole, as a float, is nearest to
// a. Both are off by half a unit of bfloat16 at most. No word is a denormal float, with which a processor may be slow: what is
// smaller than 2^-126 becomes that, or zero.
BIRNN_INLINE uint32_t pair_of(float a, float b) {
  uint32_t x, y;
  memcpy(&x, &a, 4), memcpy(&y, &b, 4);
  const uint32_t smallest = 0x80, largest = 0x7f7f;
  uint32_t low = ((y & 0x7fffffff) + 0x8000) >> 16;
  low = low < smallest ? 0 : (y >> 31) << 15 | smaller(low, largest);
  const int64_t nearest = (int64_t(x & 0x7fffffff) - low + 0x8000) >> 16;
  if ((x & 0x7fffffff) == 0 && low == 0) return 0;
  const uint32_t high = nearest < smallest ? smallest : smaller(uint32_t(nearest), largest);
  return (x >> 31) << 31 | high << 16 | low;
}

// The same as pack_columns in pairs: done once for many calls, so it need not be quick.
BIRNN_INLINE void pack_pairs(const Shape& s, const float* w, int64_t first, int units, float* to) {
  constexpr int L = lanes<float>;
  const int nv = units * s.gates;
  for (int64_t k = 0; k < s.K; k += 2) {
    for (int j = 0; j < nv; ++j, to += L) {
      for (int l = 0; l < L; ++l) {
        const int64_t unit = (first + j % units) * L + l;
        const float* at = w + (j / units * s.N + unit) * s.K + k;
        const uint32_t word = unit < s.N ? pair_of(at[0], k + 1 < s.K ? at[1] : 0) : 0;
        memcpy(to + l, &word, 4);
      }
    }
  }
}
template <class S>
BIRNN_INLINE void pack_pairs(const Shape&, const S*, int64_t, int, Wide<S>*) {}  // (never called)

// Row k of a panel of `units` vectors: f(j) is vector j. Of a pair the even row comes first.
template <class A, class F>
BIRNN_INLINE void pack_vectors(int64_t k, int64_t units, F&& f, Wide<A>* to) {
  constexpr int L = lanes<Wide<A>>;
  if constexpr (paired<A>) {
    for (int64_t j = 0; j < units; ++j) {
      float* word = to + (k / 2 * units + j) * L;
      const Bits32 bits = (Bits32)f(j);
      store(word, (Vec<float>)(k % 2 ? (bits & ~0xffff) | (Bits32)load(word) : bits >> 16 & 0xffff));
    }
  } else {
    for (int64_t j = 0; j < units; ++j) store(to + (k * units + j) * L, f(j));
  }
}

// The same out of w [K, N] (gates = 1): a row per summed index. Index k is row (k + shift) mod K. Rows lie far apart, so those to
// come are fetched.
template <class S>
BIRNN_INLINE void pack_summed(const Shape& s, const S* w, int64_t shift, int64_t first, int units, Wide<S>* to) {
  constexpr int L = lanes<Wide<S>>, line = 64 / int(sizeof(S));
  for (int64_t k = 0, row = shift; k < s.K; ++k, ++row) {
    const S* from = w + (row < s.K ? row : row - s.K) * s.N + first * L;
    for (int i = 0; i < units * L; i += line) __builtin_prefetch(from + 16 * s.N + i, 0, 2);  // (past the end is no fault)
    pack_vectors<Operand<S>>(k, units, [&](int j) { return load_some(from + j * L, s.N - (first + j) * L); }, to);
  }
}

// A weight of a layer of S, packed panel by panel as a product comes to need it: a panel is used while it is in the cache, and a
// weight that is used only once is never written out as a whole. One that meets few rows is not packed at all.
template <class S>
struct Matrix {
  typedef Wide<S> T;

  Shape s;
  T* panels;                // room for all panels
  const S* raw = nullptr;   // the weight as it came, while its panels are not packed yet
  bool by_columns = false;  // raw is [gates * N, K], else [K, N]
  int64_t shift = 0;        // of the rows of [K, N]
  bool once = false;        // there is one product only: the panels take turns in one place
  bool direct = false;      // products are computed from `raw` as it is
  Team team = {};           // panels [begin(), end()) are this thread's

  int64_t count() const { return divide_up(s.vectors<T>(), s.wide); }
  int64_t begin() const { return team.begin(count()); }
  int64_t end() const { return team.end(count()); }
  // The columns of these panels.
  int64_t begin_column() const { return smaller(first(begin()) * lanes<T>, s.N); }
  int64_t end_column() const { return smaller(first(end()) * lanes<T>, s.N); }
  int64_t first(int64_t panel) const { return panel * s.wide; }
  int units(int64_t panel) const { return int(smaller<int64_t>(s.wide, s.vectors<T>() - first(panel))); }
  T* at(int64_t panel) const { return panels + first(raw && once ? begin() : panel) * s.gates * lanes<T> * s.depth(); }

  // Before the first product: so many are to come, of so many rows together. Packing a vector of L columns takes the time of
  // K (log2(L) + 2) multiplications of vectors; a product without it L (log2(L) + 1) for each row, to add up lanes (dots.h), and
  // about K / 6 more where 16 registers have it read more bytes for each multiplication (divided by log2(8) + 2, about K / 32; not
  // so with SSE2, where a packed product takes two instructions to spread an element of its rows, and dot products none). Of
  // [K, N] a panel can be read in place, but by one or two tiles of rows only: its rows lie far apart, and would drive each other
  // out of the cache.
  void expect(int64_t products, int64_t rows) {
    constexpr bool reads_more = BIRNN_VECTOR_REGISTERS < 32 && BIRNN_VECTOR_BYTES > 16;
    once = products == 1;
    direct =
        by_columns ? rows * (lanes<T> + (reads_more ? s.K / 32 : 0)) <= s.K : in_place && once && rows <= 2 * tile_rows(s.wide);
  }
  static constexpr bool in_place = sizeof(S) == sizeof(T);  // (the micro-kernel reads no other type)

  void pack(int64_t panel) const {
    if (s.pairs && !paired<Operand<S>>) {
      pack_pairs(s, raw, first(panel), units(panel), at(panel));
    } else if (by_columns) {
      pack_columns(s, raw, first(panel), units(panel), at(panel));
    } else {
      pack_summed(s, raw, shift, first(panel), units(panel), at(panel));
    }
  }
  void pack_all() {
    for (int64_t i = 0; raw && i < count(); ++i) pack(i);
    raw = nullptr;
  }
};

// A bias [gates * H] in the order of a row of the packed matrix, as far as this thread's panels go; null is zero.
template <class S, class T = Wide<S>>
BIRNN_INLINE void pack_bias(const Matrix<S>& m, const S* bias, T* to) {
  constexpr int L = lanes<T>;
  for (int64_t p = m.begin(); p < m.end(); ++p) {
    const int units = m.units(p);
    for (int j = 0; j < units * m.s.gates; ++j) {
      const int64_t column = (m.first(p) + j % units) * L;
      const Vec<T> b = bias ? load_some(bias + j / units * m.s.N + column, m.s.N - column) : Vec<T>{};
      store(to + (m.first(p) * m.s.gates + j) * L, b);
    }
  }
}

// Packs row `k` of a matrix whose rows are the summed index (gates = 1), for left operands A; null is a row of zeros. One row at a
// time: they lie where time, batch and lengths put them.
template <class A, class R, class T = Wide<A>>
BIRNN_INLINE void pack_row(const Shape& s, int64_t k, const R* row, T* to) {
  constexpr int L = lanes<T>;
  const int64_t vectors = s.vectors<T>();
  for (int64_t first = 0; first < vectors; first += s.wide) {
    const auto of = [&](int64_t j) { return row ? load_some(row + (first + j) * L, s.N - (first + j) * L) : Vec<T>{}; };
    pack_vectors<A>(k, smaller<int64_t>(s.wide, vectors - first), of, to + first * L * s.depth());
  }
}

}  // namespace BIRNN_NS
}  // namespace birnn
