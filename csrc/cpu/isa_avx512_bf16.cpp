// The kernels for bfloat16 of a processor with AVX-512 that multiplies pairs of it (AVX512_BF16). GCC only, from 11 on: isa_avx512.cpp.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 11
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>
#pragma GCC target("avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define BIRNN_NS avx512_bf16
#define BIRNN_F16C
#define BIRNN_BF16_DOT(sum, a, b) (Vec<float>)_mm512_dpbf16_ps((__m512)(sum), (__m512bh)(a), (__m512bh)(b))
#define BIRNN_VECTOR_BYTES 64
#define BIRNN_VECTOR_REGISTERS 32
#include "isa.inl"
#endif
