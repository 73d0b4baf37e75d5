// Vectors of the instruction set at hand, with the compiler's vector extension (GCC and Clang): one source for AVX-512, AVX2,
// SSE2 and NEON. BIRNN_VECTOR_BYTES is the width, BIRNN_NS the namespace of the instruction set.
// Not here: 16-bit floats and parts of vectors (simd_memory.h), torch, functions of the STL (an inline one compiled for AVX-512
// could win at link time and run on a machine without), and intrinsics, but for the three that convert or multiply halves.
#pragma once

#include <cstdint>
#include <cstring>

#define BIRNN_INLINE static inline __attribute__((always_inline))

namespace birnn {
namespace BIRNN_NS {

template <class T>
struct Simd;

template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(BIRNN_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(BIRNN_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t Int __attribute__((vector_size(BIRNN_VECTOR_BYTES)));
};

template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(BIRNN_VECTOR_BYTES)));
  typedef double Unaligned __attribute__((vector_size(BIRNN_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t Int __attribute__((vector_size(BIRNN_VECTOR_BYTES)));
};

template <class T>
using Vec = typename Simd<T>::V;

template <class T>
constexpr int lanes = BIRNN_VECTOR_BYTES / int(sizeof(T));

template <class T>
BIRNN_INLINE T smaller(T a, T b) {
  return b < a ? b : a;
}

// n / d rounded up, and n rounded up to a multiple of d.
BIRNN_INLINE int64_t divide_up(int64_t n, int64_t d) { return (n + d - 1) / d; }
BIRNN_INLINE int64_t round_up(int64_t n, int64_t d) { return divide_up(n, d) * d; }

template <class T>
BIRNN_INLINE Vec<T> load(const T* p) {
  return *reinterpret_cast<const typename Simd<T>::Unaligned*>(p);
}

template <class T>
BIRNN_INLINE void store(T* p, Vec<T> v) {
  *reinterpret_cast<typename Simd<T>::Unaligned*>(p) = v;
}

// Has v stay in a register. A compiler that sees few uses of a loaded value may read it anew for each, and a 512-bit load takes as
// long as a multiplication (GCC 12, Zen 4: products of two and three rows were 1.2 to 1.3 times as slow).
template <class V>
BIRNN_INLINE void hold([[maybe_unused]] V& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
}

template <class T>
BIRNN_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};  // x - 0, not x + 0, keeps the sign of -0
}

BIRNN_INLINE Vec<float> upper_half(Vec<float> v) { return (Vec<float>)((Simd<float>::Int)v & ~0xffff); }
// The floats whose upper halves are the lower halves of these. (Of doubles there are none; never called.)
BIRNN_INLINE Vec<float> lower_half(Vec<float> v) { return (Vec<float>)((Simd<float>::Int)v << 16); }
BIRNN_INLINE Vec<double> lower_half(Vec<double> v) { return v; }
BIRNN_INLINE float lower_half(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  bits <<= 16;
  memcpy(&x, &bits, 4);
  return x;
}
BIRNN_INLINE double lower_half(double x) { return x; }

}  // namespace BIRNN_NS
}  // namespace birnn
