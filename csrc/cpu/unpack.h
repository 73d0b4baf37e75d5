// From packed memory back to the weights (pack.h): as they came or, in pairs, as they were rounded. For checkpoints.
#pragma once

#include "pack.h"

namespace birnn {
namespace BIRNN_NS {

// Calls f(panel, place in a row of the panel, row of the weight) for every column of the product.
template <class T, class F>
BIRNN_INLINE void each_column(const Matrix<T>& m, F&& f) {
  constexpr int L = lanes<T>;
  for (int64_t p = 0; p < m.count(); ++p) {
    const int units = m.units(p);
    for (int i = 0; i < units * m.s.gates * L; ++i) {
      const int64_t unit = (m.first(p) + i / L % units) * L + i % L;
      if (unit < m.s.N) f(p, i, i / L / units * m.s.N + unit);
    }
  }
}

// w [gates * N, K], which was packed by columns.
template <class T>
BIRNN_INLINE void unpack_weight(const Matrix<T>& m, T* w) {
  each_column(m, [&](int64_t p, int i, int64_t row) {
    const T* at = m.at(p) + i;
    const int64_t next = int64_t(m.units(p)) * m.s.gates * lanes<T>;
    T* to = w + row * m.s.K;
    for (int64_t k = 0; k < m.s.K; ++k)
      to[k] = !m.s.pairs ? at[k * next] : k % 2 ? lower_half(at[k / 2 * next]) : at[k / 2 * next];
  });
}

// bias [gates * N], which pack_bias put in the order of `m`.
template <class T>
BIRNN_INLINE void unpack_bias(const Matrix<T>& m, const T* packed, T* bias) {
  each_column(m, [&](int64_t p, int i, int64_t row) { bias[row] = packed[m.first(p) * m.s.gates * lanes<T> + i]; });
}

}  // namespace BIRNN_NS
}  // namespace birnn
