// The kernels for AVX2 with FMA (256-bit vectors, 16 registers). GCC only: the pragma is how one file gets its own target under
// setuptools, which passes the same flags to all; elsewhere this file is empty.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>
#pragma GCC target("avx2,fma,f16c")
#define BIRNN_NS avx2
#define BIRNN_ISA_NAME "avx2"
#define BIRNN_F16C
#define BIRNN_VECTOR_BYTES 32
#define BIRNN_VECTOR_REGISTERS 16
#include "isa.inl"
#endif
