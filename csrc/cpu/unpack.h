// From packed memory back to the weights (pack.h): as they came or, from pairs of floats, as they were rounded. For checkpoints.
#pragma once

#include "pack.h"

namespace birnn {
namespace BIRNN_NS {

// Calls f(panel, place in a row of the panel, row of the weight) for every column of the product.
template <class S, class F>
BIRNN_INLINE void each_column(const Matrix<S>& m, F&& f) {
  constexpr int L = lanes<Wide<S>>;
  for (int64_t p = 0; p < m.count(); ++p) {
    const int units = m.units(p);
    for (int i = 0; i < units * m.s.gates * L; ++i) {
      const int64_t unit = (m.first(p) + i / L % units) * L + i % L;
      if (unit < m.s.N) f(p, i, i / L / units * m.s.N + unit);
    }
  }
}

// w [gates * N, K], which was packed by columns.
template <class S>
BIRNN_INLINE void unpack_weight(const Matrix<S>& m, S* w) {
  each_column(m, [&](int64_t p, int i, int64_t row) {
    const Wide<S>* at = m.at(p) + i;
    const int64_t next = int64_t(m.units(p)) * m.s.gates * lanes<Wide<S>>;
    S* to = w + row * m.s.K;
    for (int64_t k = 0; k < m.s.K; ++k) {
      if constexpr (paired<Operand<S>>) {  // the even one in the lower half
        memcpy(to + k, reinterpret_cast<const char*>(at + k / 2 * next) + k % 2 * sizeof(S), sizeof(S));
      } else {
        to[k] = !m.s.pairs ? at[k * next] : k % 2 ? lower_half(at[k / 2 * next]) : at[k / 2 * next];
      }
    }
  });
}

// bias [gates * N], which pack_bias put in the order of `m`.
template <class S, class T = Wide<S>>
BIRNN_INLINE void unpack_bias(const Matrix<S>& m, const T* packed, S* bias) {
  each_column(m, [&](int64_t p, int i, int64_t row) {
    store_some(bias + row, Vec<T>{packed[m.first(p) * m.s.gates * lanes<T> + i]}, 1);
  });
}

}  // namespace BIRNN_NS
}  // namespace birnn
