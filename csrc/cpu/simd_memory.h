// Vectors from and to memory: 16-bit floats, which become floats on the way and are rounded to nearest on the way back (ties to
// even; denormals are kept), parts of vectors, and rows.
#pragma once

#include "../halves.h"
#include "simd.h"

namespace birnn {
namespace BIRNN_NS {

// As many 16-bit integers as a vector has floats.
typedef uint16_t Bits16 __attribute__((vector_size(BIRNN_VECTOR_BYTES / 2)));
typedef Simd<float>::Int Bits32;

BIRNN_INLINE Bits32 load_bits(const void* p) {
  Bits16 bits;
  memcpy(&bits, p, sizeof(bits));
  return __builtin_convertvector(bits, Bits32);
}

BIRNN_INLINE void store_bits(void* p, Bits32 v) {
  const Bits16 bits = __builtin_convertvector(v, Bits16);
  memcpy(p, &bits, sizeof(bits));
}

BIRNN_INLINE Vec<float> load(const bfloat16* p) { return (Vec<float>)(load_bits(p) << 16); }

BIRNN_INLINE Bits32 rounded(const bfloat16*, Vec<float> v) {
  const Bits32 x = (Bits32)v, nearest = (x + 0x7fff + ((x >> 16) & 1)) >> 16;
  return v == v ? nearest : x - x + 0x7fc0;
}

BIRNN_INLINE void store(bfloat16* p, Vec<float> v) { store_bits(p, rounded(p, v)); }

#if defined(BIRNN_F16C) && BIRNN_VECTOR_BYTES == 64
// (With a mask of all lanes, since GCC 12 warns of its own header without one.)
BIRNN_INLINE Vec<float> load(const float16* p) {
  return (Vec<float>)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i_u*)p));
}
BIRNN_INLINE void store(float16* p, Vec<float> v) {
  _mm256_storeu_si256((__m256i_u*)p, _mm512_maskz_cvtps_ph(0xffff, (__m512)v, 0));
}
#elif defined(BIRNN_F16C) && BIRNN_VECTOR_BYTES == 32
BIRNN_INLINE Vec<float> load(const float16* p) { return (Vec<float>)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i_u*)p)); }
BIRNN_INLINE void store(float16* p, Vec<float> v) { _mm_storeu_si128((__m128i_u*)p, _mm256_cvtps_ph((__m256)v, 0)); }
#else
BIRNN_INLINE Vec<float> load(const float16* p) {
  const Bits32 h = load_bits(p), sign = (h & 0x8000) << 16, rest = (h & 0x7fff) << 13;
  // Exponents are 112 more in a float; but infinity is the last one here as there, and what has none is a multiple of 2^-24.
  const Bits32 tiny = (Bits32)((Vec<float>)(rest + (113 << 23)) - 0x1p-14f);
  const Bits32 bits = rest < 1 << 23 ? tiny : rest >= 31 << 23 ? rest + (224 << 23) : rest + (112 << 23);
  return (Vec<float>)(bits | sign);
}

BIRNN_INLINE Bits32 rounded(const float16*, Vec<float> v) {
  const Bits32 x = (Bits32)v & 0x7fffffff, sign = ((Bits32)v >> 16) & 0x8000;
  const Bits32 normal = (x - (112 << 23) + 0xfff + ((x >> 13) & 1)) >> 13;
  const Bits32 tiny = (Bits32)((Vec<float>)x + 0.5f) - (126 << 23);  // the lowest bit of 0.5 is 2^-24: the addition rounds
  const Bits32 large = x > 255 << 23 ? x - x + 0x7e00 : x - x + 0x7c00;
  return sign | (x < 113 << 23 ? tiny : x >= 143 << 23 ? large : normal);
}

BIRNN_INLINE void store(float16* p, Vec<float> v) { store_bits(p, rounded(p, v)); }
#endif

// v as it would be read again from where it was stored as S.
template <class S>
BIRNN_INLINE Vec<Wide<S>> as_stored(Vec<Wide<S>> v) {
  if constexpr (sizeof(S) == sizeof(Wide<S>)) return v;
  alignas(BIRNN_VECTOR_BYTES) S buffer[lanes<Wide<S>>];
  store(buffer, v);
  return load(buffer);
}

// The first `count` lanes only; the others read as zero and are not written. A full vector takes the fast way.
template <class S>
BIRNN_INLINE Vec<Wide<S>> load_some(const S* p, int64_t count) {
  constexpr int L = lanes<Wide<S>>;
  if (count >= L) return load(p);
  alignas(BIRNN_VECTOR_BYTES) S buffer[L] = {};
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
  return load(buffer);
}

template <class S>
BIRNN_INLINE void store_some(S* p, Vec<Wide<S>> v, int64_t count) {
  constexpr int L = lanes<Wide<S>>;
  if (count >= L) return store(p, v);
  alignas(BIRNN_VECTOR_BYTES) S buffer[L];
  store(buffer, v);
  for (int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}

// to[i] = from[i], i < n, of any two types that are computed in the same.
template <class A, class S>
BIRNN_INLINE void copy(A* to, const S* from, int64_t n) {
  for (int64_t i = 0; i < n; i += lanes<Wide<S>>) store_some(to + i, load_some(from + i, n - i), n - i);
}
template <class S>
BIRNN_INLINE void copy(S* to, const S* from, int64_t n) {
  memcpy(to, from, size_t(n) * sizeof(S));
}

template <class S>
BIRNN_INLINE void zero(S* to, int64_t n) {
  memset(static_cast<void*>(to), 0, size_t(n) * sizeof(S));
}

}  // namespace BIRNN_NS
}  // namespace birnn
