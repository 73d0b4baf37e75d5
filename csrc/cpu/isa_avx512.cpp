// The kernels for AVX-512 (512-bit vectors, 32 registers). GCC only: the pragma is how one file gets its own target under
// setuptools, which passes the same flags to all; elsewhere this file is empty. (A macro like __F16C__ does not follow the pragma.)
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#define BIRNN_NS avx512
#define BIRNN_ISA_NAME "avx512"
#define BIRNN_F16C
#define BIRNN_VECTOR_BYTES 64
#define BIRNN_VECTOR_REGISTERS 32
#include "isa.inl"
#endif
