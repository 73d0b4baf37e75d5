// The kernels in 128-bit vectors, for whatever the compiler's default target is: SSE2 on x86-64, NEON on aarch64.
#define BIRNN_NS base
#define BIRNN_ISA_NAME "base"
#define BIRNN_VECTOR_BYTES 16
#if defined(__aarch64__)
#define BIRNN_VECTOR_REGISTERS 32
#else
#define BIRNN_VECTOR_REGISTERS 16
#endif
#include "isa.inl"
