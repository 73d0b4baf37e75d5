// The thin layer between the kernels and the CUDA runtime: everything that nvcc knows and another compiler does not is named
// here, once. tests/shim/seam.h says the same things to g++, so that the kernels' source runs on a machine without a GPU.
// Not here: arithmetic (math.h), cells, torch.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
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

BIRNN_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
BIRNN_DEVICE uint32_t bits_of(Half x) { return __half_as_ushort(x); }
BIRNN_DEVICE uint32_t bits_of(BFloat16 x) { return __bfloat16_as_ushort(x); }

BIRNN_DEVICE void block_barrier() { __syncthreads(); }
// A barrier at which all learn whether it is so for any.
BIRNN_DEVICE bool block_any(bool so) { return __syncthreads_or(so); }

// The value of the lane whose number differs in the bits of `mask`. All 32 lanes of the warp take part.
BIRNN_DEVICE float exchange(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }

// sum += a b on the tensor cores: a [16, 16] of T by rows, b [16, 8] of T by columns, sum [16, 8]. Lane l has, as pairs of
// neighbours in k: of a, rows l / 4 and l / 4 + 8 at k = l % 4 * 2, then both at 8 more; of b, column l / 4 at the same k; of
// the sum, rows as of a at columns l % 4 * 2 and one more. (PTX ISA, "mma.m16n8k16".) All 32 lanes of the warp take part.
template <class T>
BIRNN_DEVICE void multiply_tile(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define BIRNN_MMA(type)                                                               \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])               \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
template <>
__device__ __forceinline__ void multiply_tile<Half>(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  BIRNN_MMA("f16");
}
template <>
__device__ __forceinline__ void multiply_tile<BFloat16>(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  BIRNN_MMA("bf16");
}
#undef BIRNN_MMA
#else
// Before sm_80 there are tiles half as deep, and none of bfloat16: has_tiles_of says so.
template <>
__device__ __forceinline__ void multiply_tile<Half>(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  for (int half = 0; half < 2; ++half) {
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[2 * half]), "r"(a[2 * half + 1]), "r"(b[half]));
  }
}
template <>
__device__ __forceinline__ void multiply_tile<BFloat16>(float (&)[4], const uint32_t (&)[4], const uint32_t (&)[2]) {
  __trap();
}
#endif

// Words that other blocks read and write at the same time: relaxed accesses of 8 bytes, past the first-level cache.
BIRNN_DEVICE uint64_t load_word(const uint64_t* p) {
  uint64_t word;
  asm volatile("ld.relaxed.gpu.global.u64 %0, [%1];" : "=l"(word) : "l"(p) : "memory");
  return word;
}
BIRNN_DEVICE void store_word(uint64_t* p, uint64_t word) {
  asm volatile("st.relaxed.gpu.global.u64 [%0], %1;" ::"l"(p), "l"(word) : "memory");
}
BIRNN_DEVICE void store_for_host(uint32_t* p, uint32_t value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(p), "r"(value) : "memory");
}
// Between two looks at a word that is not there yet: the hardware does so by itself.
BIRNN_DEVICE void let_others_run() {}

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

// The same for a kernel whose blocks wait for each other: all of them are resident, or it is an error.
template <class Args>
void launch_together(void (*kernel)(Args), const Grid& g, size_t shared_bytes, void* stream, Args args, const char* what) {
  if (shared_bytes > 48 * 1024) allow_shared(reinterpret_cast<const void*>(kernel));
  void* list[] = {&args};
  check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), dim3(unsigned(g.blocks_x), unsigned(g.blocks_y)),
                                    dim3(unsigned(g.threads_x), unsigned(g.threads_y)), list, shared_bytes,
                                    static_cast<cudaStream_t>(stream)),
        what);
}

// Multiprocessors of the present device; 0 where launch_together is not to be had.
inline int multiprocessors() {
  int device = 0;
  check(cudaGetDevice(&device), "device properties");
  return attribute(cudaDevAttrCooperativeLaunch, device) ? attribute(cudaDevAttrMultiProcessorCount, device) : 0;
}

// Whether the present device has multiply_tile for T; float needs none.
template <class T>
bool has_tiles_of() {
  int device = 0;
  check(cudaGetDevice(&device), "device properties");
  return !std::is_same<T, BFloat16>::value || attribute(cudaDevAttrComputeCapabilityMajor, device) >= 8;
}

// A word of host memory, zero at first, that kernels on all devices can write. It is never given back: a kernel may be late.
inline uint32_t* new_word_for_host() {
  void* word = nullptr;
  cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;  // whoever is capturing need not know of it
  check(cudaThreadExchangeStreamCaptureMode(&mode), "alarm");
  const cudaError_t error = cudaHostAlloc(&word, sizeof(uint32_t), cudaHostAllocMapped | cudaHostAllocPortable);
  check(cudaThreadExchangeStreamCaptureMode(&mode), "alarm");
  check(error, "alarm");
  std::memset(word, 0, sizeof(uint32_t));
  return static_cast<uint32_t*>(word);
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
