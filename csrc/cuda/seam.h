// The thin layer between the kernels and the CUDA runtime: everything that nvcc knows and another compiler does not is named
// here, once. tests/shim/seam.h says the same things to g++, so that the kernels' source runs on a machine without a GPU.
// Not here: arithmetic (math.h), cells, torch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

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

inline int attribute(cudaDeviceAttr name, int device) {
  int value = 0;
  check(cudaDeviceGetAttribute(&value, name, device), "device properties");
  return value;
}

// Lets blocks of a kernel ask for all the shared memory that the present device has; returns the device and its most. The
// limit belongs to the kernel and the device, not to a launch: set to what each launch needs, it would be lowered by one thread
// between another thread's setting and launch.
inline std::pair<int, size_t> allow_shared(const void* kernel) {
  static std::mutex mutex;
  static std::set<std::pair<const void*, int>> allowed;
  int device = 0;
  check(cudaGetDevice(&device), "device properties");
  const int most = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  const std::lock_guard<std::mutex> lock(mutex);
  if (!allowed.count({kernel, device})) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most), "shared memory");
    allowed.insert({kernel, device});
  }
  return {device, size_t(most)};
}

// `what` names the op and the kernel in an error.
template <class Args>
void launch(void (*kernel)(Args), const Grid& g, size_t shared_bytes, void* stream, const Args& args, const char* what) {
  if (g.blocks_x == 0 || g.blocks_y == 0) return;
  if (shared_bytes > 48 * 1024) allow_shared(reinterpret_cast<const void*>(kernel));  // up to there nobody need ask
  kernel<<<dim3(unsigned(g.blocks_x), unsigned(g.blocks_y)), dim3(unsigned(g.threads_x), unsigned(g.threads_y)), shared_bytes,
           static_cast<cudaStream_t>(stream)>>>(args);
  check(cudaGetLastError(), what);
}

// How many blocks of this kernel the present device holds at the same time; 0 where one is too large. The driver is asked once.
inline int64_t resident_blocks(const void* kernel, int threads, size_t shared_bytes) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int, size_t>, int64_t> known;
  const auto [device, most] = allow_shared(kernel);
  if (shared_bytes > most) return 0;
  const std::tuple<const void*, int, int, size_t> key(kernel, device, threads, shared_bytes);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  int blocks = 0;
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes), "occupancy");
  return known[key] = int64_t(blocks) * attribute(cudaDevAttrMultiProcessorCount, device);
}
template <class Args>
int64_t resident_blocks(void (*kernel)(Args), int threads, size_t shared_bytes) {
  return resident_blocks(reinterpret_cast<const void*>(kernel), threads, shared_bytes);
}

// Whether work given to the stream becomes part of a CUDA graph.
inline bool is_capturing(void* stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status), "stream");
  return status != cudaStreamCaptureStatusNone;
}

inline void set_device(int index) { check(cudaSetDevice(index), "device"); }

}  // namespace cuda
}  // namespace birnn
