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

// Registers as for one block to a multiprocessor: ptxas would spill to fit in more of this size. (Of half the size there is room
// for two.)
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
BIRNN_DEVICE void warp_barrier() { __syncwarp(); }
// A barrier at which all learn whether it is so for any.
BIRNN_DEVICE bool block_any(bool so) { return __syncthreads_or(so); }

// The same number, of which the compiler knows nothing: what follows from it is computed where it is needed, and not before a loop,
// to be kept in registers that weights could have.
BIRNN_DEVICE int anew(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// The value of the lane whose number differs in the bits of `mask`. All 32 lanes of the warp take part.
BIRNN_DEVICE float exchange(float x, int mask) { return __shfl_xor_sync(0xffffffffu, x, mask); }
// The value of lane j of this lane's four. All 32 lanes of the warp take part.
BIRNN_DEVICE uint32_t of_four(uint32_t x, int j) { return __shfl_sync(0xffffffffu, x, j, 4); }

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

// ---- blocks of a cluster: from sm_90 on (PTX ISA: "barrier.cluster", "mapa", "mbarrier", "st.async") ----

// Whether what is being compiled may name them. Elsewhere a kernel of clusters is empty, and resident_clusters says 0.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
constexpr bool has_cluster_code = true;
#else
constexpr bool has_cluster_code = false;
#endif

// All threads of all blocks of the cluster.
BIRNN_DEVICE void cluster_barrier() {
  asm volatile("barrier.cluster.arrive.release;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
}

// An address in this block's shared memory, and the same place in that of block `rank` of the cluster. Places that lie apart in
// one lie as far apart in the other.
BIRNN_DEVICE uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }
BIRNN_DEVICE uint32_t peer_address(uint32_t address, int rank) {
  uint32_t peer;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(peer) : "r"(address), "r"(rank));
  return peer;
}

// An mbarrier: a phase ends once one thread has announced the bytes to come and as many have come, whichever is first. What came
// can be read by whoever has seen the phase end. Phases are numbered 0, 1, 0, ...
BIRNN_DEVICE void begin_arrivals(uint64_t* barrier) {  // nobody in the cluster knows of it before a cluster_barrier
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
BIRNN_DEVICE void expect_bytes(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
// Waits for a while: some 500 ns, if the hardware heeds the hint.
BIRNN_DEVICE bool has_arrived(uint64_t* barrier, uint32_t phase) {
  uint32_t done;
  asm volatile(
      "{\n.reg .pred done;\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%1], %2, 500;\n"
      "selp.u32 %0, 1, 0, done;\n}"
      : "=r"(done)
      : "r"(shared_address(barrier)), "r"(phase)
      : "memory");
  return done;
}

// Stores words at an address of another block of the cluster, some time later, and then counts their bytes at its mbarrier.
BIRNN_DEVICE void push(uint32_t to, const uint32_t (&words)[4], uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(to),
               "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(barrier)
               : "memory");
}
BIRNN_DEVICE void push(uint32_t to, const uint32_t (&words)[2], uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(to),
               "r"(words[0]), "r"(words[1]), "r"(barrier)
               : "memory");
}
// Long enough for whatever was pushed before, some 100 us: nothing else tells the one who pushed. For who has given up waiting. (By
// the clock, since a nanosleep may be as short as nothing.)
BIRNN_DEVICE void let_pushes_land() {
  for (const long long end = clock64() + 200'000; clock64() < end;) __nanosleep(1'000);
}

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

// A launch of clusters of neighbouring blocks. No block starts before its whole cluster has room, so they may wait for each other.
struct ClusterLaunch {
  cudaLaunchAttribute size = {};
  cudaLaunchConfig_t config = {};

  ClusterLaunch(const Grid& g, int blocks, size_t shared_bytes, void* stream) {
    size.id = cudaLaunchAttributeClusterDimension;
    size.val.clusterDim.x = unsigned(blocks), size.val.clusterDim.y = size.val.clusterDim.z = 1;
    config.gridDim = dim3(unsigned(g.blocks_x), unsigned(g.blocks_y));
    config.blockDim = dim3(unsigned(g.threads_x), unsigned(g.threads_y));
    config.dynamicSmemBytes = shared_bytes, config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = &size, config.numAttrs = 1;
  }
};

template <class Args>
void launch_clusters(void (*kernel)(Args), const Grid& g, int blocks, size_t shared_bytes, void* stream, Args args,
                     const char* what) {
  const ClusterLaunch launch(g, blocks, shared_bytes, stream);  // resident_clusters has allowed its size
  void* list[] = {&args};
  check(cudaLaunchKernelExC(&launch.config, reinterpret_cast<const void*>(kernel), list), what);
}

// How many clusters of so many blocks of this kernel the present device holds at the same time; 0 where it knows no clusters,
// or none of that size, or the kernel was compiled for an older one. The driver is asked once.
inline int64_t resident_clusters(const void* kernel, int blocks, int threads, size_t shared_bytes) {
  static std::mutex mutex;
  static std::map<std::tuple<const void*, int, int, int, size_t>, int64_t> known;
  const auto [device, most] = allow_shared(kernel);
  if (shared_bytes > most || !attribute(cudaDevAttrClusterLaunch, device)) return 0;
  const std::tuple<const void*, int, int, int, size_t> key(kernel, device, blocks, threads, shared_bytes);
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  cudaFuncAttributes compiled = {};
  check(cudaFuncGetAttributes(&compiled, kernel), "kernel properties");
  if (compiled.ptxVersion < 90) return known[key] = 0;
  // More than 8 blocks are not promised to every device that knows clusters.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1), "clusters");
  // All that can be shared memory: blocks that share a multiprocessor need it.
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared),
        "clusters");
  const ClusterLaunch launch({blocks, 1, threads, 1}, blocks, shared_bytes, nullptr);
  int clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &launch.config) != cudaSuccess) {  // no such size here
    (void)cudaGetLastError();
    clusters = 0;
  }
  return known[key] = clusters;
}
template <class Args>
int64_t resident_clusters(void (*kernel)(Args), int blocks, int threads, size_t shared_bytes) {
  return resident_clusters(reinterpret_cast<const void*>(kernel), blocks, threads, shared_bytes);
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
