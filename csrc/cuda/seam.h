// The thin layer between the kernels and the CUDA runtime: everything that nvcc knows and another compiler does not is named
// here, once. tests/shim/seam.h says the same things to g++, so that the kernels' source runs on a machine without a GPU.
// Not here: arithmetic (math.h), cells, torch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

// One block to a multiprocessor is enough: ptxas would spill registers to fit in more.
#define BIRNN_KERNEL(threads) __global__ void __launch_bounds__(threads, 1)
#define BIRNN_DEVICE static __device__ __forceinline__
#define BIRNN_METHOD __device__ __forceinline__
#define BIRNN_BOTH static __host__ __device__ __forceinline__
// Dynamic shared memory of a block, as an array of V.
#define BIRNN_SHARED(V, name)                                   \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  V* name = reinterpret_cast<V*>(name##_bytes)

namespace birnn {
namespace cuda {

typedef __half Half;
typedef __nv_bfloat16 BFloat16;

BIRNN_DEVICE float wide(float x) { return x; }
BIRNN_DEVICE double wide(double x) { return x; }
BIRNN_DEVICE float wide(Half x) { return __half2float(x); }
BIRNN_DEVICE float wide(BFloat16 x) { return __bfloat162float(x); }

template <class T>
struct Narrow;
template <>
struct Narrow<float> {
  BIRNN_DEVICE float of(float x) { return x; }
};
template <>
struct Narrow<double> {
  BIRNN_DEVICE double of(double x) { return x; }
};
template <>
struct Narrow<Half> {
  BIRNN_DEVICE Half of(float x) { return __float2half_rn(x); }
};
template <>
struct Narrow<BFloat16> {
  BIRNN_DEVICE BFloat16 of(float x) { return __float2bfloat16_rn(x); }
};

BIRNN_DEVICE void block_barrier() { __syncthreads(); }

// The value of the lane whose number differs in the bits of `mask`. All 32 lanes of the warp take part.
BIRNN_DEVICE float exchange(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();  // a launch's error would be reported again by whoever asks next
  throw std::runtime_error(std::string("birnn_ext: ") + what + ": CUDA error " + std::to_string(int(error)) + ", " +
                           cudaGetErrorString(error));
}

struct Grid {
  int64_t blocks_x, blocks_y;
  int threads_x, threads_y;
};

// `what` names the op and the kernel in an error.
template <class Args>
void launch(void (*kernel)(Args), const Grid& g, size_t shared_bytes, void* stream, const Args& args, const char* what) {
  if (g.blocks_x == 0 || g.blocks_y == 0) return;
  if (shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                               int(shared_bytes)),
          what);
  }
  kernel<<<dim3(unsigned(g.blocks_x), unsigned(g.blocks_y)), dim3(unsigned(g.threads_x), unsigned(g.threads_y)), shared_bytes,
           static_cast<cudaStream_t>(stream)>>>(args);
  check(cudaGetLastError(), what);
}

// How many blocks of this kernel the present device holds at the same time; 0 where one is too large.
template <class Args>
int64_t resident_blocks(void (*kernel)(Args), int threads, size_t shared_bytes) {
  int device = 0, most = 0, multiprocessors = 0, blocks = 0;
  check(cudaGetDevice(&device), "device properties");
  check(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "device properties");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "device properties");
  if (shared_bytes > size_t(most)) return 0;
  const void* function = reinterpret_cast<const void*>(kernel);
  check(cudaFuncSetAttribute(function, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes)), "shared memory");
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, threads, shared_bytes), "occupancy");
  return int64_t(blocks) * multiprocessors;
}

inline void set_device(int index) { check(cudaSetDevice(index), "device"); }

}  // namespace cuda
}  // namespace birnn
