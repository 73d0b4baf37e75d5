// What products are computed from.
//
//   Operand<S>   the left operand of products of a layer of S: Wide<S>; but bfloat16 as it is where the processor multiplies
//                that itself: BIRNN_BF16_DOT(sum, a, b). Then products go along pairs of the summed index ("paired"):
//
//                  word of a[k], a[k + 1]   | a[k + 1] | a[k] |       sum += a[k] b[k] + a[k + 1] b[k + 1]    per lane, one
//                                           31 ..... 16 15 .. 0                                               instruction
//
// Not here: how the right operand is packed (pack.h) and the micro-kernels (tile.h, dots.h).
#pragma once

#include "simd_memory.h"

namespace birnn {
namespace BIRNN_NS {

template <class S>
struct OperandOf {
  typedef Wide<S> Type;
};
#if defined(BIRNN_BF16_DOT)
template <>
struct OperandOf<bfloat16> {
  typedef bfloat16 Type;
};
#endif
template <class S>
using Operand = typename OperandOf<S>::Type;

// Whether A, the type of a left operand, is multiplied in pairs.
template <class A>
constexpr bool paired = sizeof(A) < sizeof(float);

// The numbers from p on, `count` of which are left: a vector of them, or of words of two; zeros behind the last.
template <class S, class A = Operand<S>>
BIRNN_INLINE Vec<Wide<S>> load_words(const S* p, int64_t count) {
  if constexpr (paired<A>) {
    constexpr int n = 2 * lanes<float>;
    Vec<float> v;
    if (count >= n) {
      memcpy(&v, p, sizeof(v));
    } else {
      S buffer[n] = {};
      for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
      memcpy(&v, buffer, sizeof(v));
    }
    return v;
  } else {
    return load_some(p, count);
  }
}

// A factor for all lanes: a[0] or, of pairs, a word of a[0] and a[1]; `alone`: of a[0] and zero.
template <class A>
BIRNN_INLINE auto factor(const A* a, bool alone) {
  if constexpr (paired<A>) {
    uint32_t word = 0;
    memcpy(&word, a, alone ? 2 : 4);
    return (Vec<float>)(int32_t(word) - Bits32{});
  } else {
    return *a;
  }
}

// sum + a * b, lane by lane; a is from `load_words` or `factor`.
template <class A, class Factor>
BIRNN_INLINE Vec<Wide<A>> multiply_add(Vec<Wide<A>> sum, Factor a, Vec<Wide<A>> b) {
#if defined(BIRNN_BF16_DOT)
  if constexpr (paired<A>) return BIRNN_BF16_DOT(sum, a, b);
#endif
  return sum + a * b;
}

}  // namespace BIRNN_NS
}  // namespace birnn
