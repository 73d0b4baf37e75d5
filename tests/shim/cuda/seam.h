// What csrc/cuda/seam.h says to nvcc, said to g++: the kernels' source, unchanged, runs on the CPU (engine.h).
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstring>
#include <stdexcept>

#include "../engine.h"

#define BIRNN_KERNEL(threads) static void
#define BIRNN_DEVICE static inline
#define BIRNN_METHOD inline
#define BIRNN_BOTH static inline
#define BIRNN_SHARED(V, name) V* name = reinterpret_cast<V*>(shim::me->block->shared.data())

#define blockIdx (shim::me->block->index)
#define blockDim (shim::me->block->size)
#define threadIdx (shim::me->index)

namespace birnn {
namespace cuda {

typedef c10::Half Half;
typedef c10::BFloat16 BFloat16;

static inline float wide(float x) { return x; }
static inline double wide(double x) { return x; }
static inline float wide(Half x) { return x; }
static inline float wide(BFloat16 x) { return x; }

template <class T>
struct Narrow {
  template <class A>
  static T of(A x) {
    return T(x);
  }
};

template <class T>
static inline uint32_t bits_of(T x) {
  uint32_t bits = 0;
  std::memcpy(&bits, &x, sizeof(x));
  return bits;
}

static inline void block_barrier() { shim::me->block->wait(); }
static inline bool block_any(bool so) { return shim::me->block->any(so); }
static inline void warp_barrier() {}  // lanes do not run in step here, and whatever they make together waits by itself
static inline int anew(int x) { return x; }
static inline float exchange(float x, int mask) {
  return std::bit_cast<float>(shim::me->block->shuffle(std::bit_cast<uint32_t>(x), shim::me->number ^ mask));
}
static inline uint32_t of_four(uint32_t x, int j) { return shim::me->block->shuffle(x, shim::me->number / 4 * 4 + j); }

struct Grid {
  int64_t blocks_x, blocks_y;
  int threads_x, threads_y;
};

// Element e of a lane's pairs.
template <class T>
static inline float element(const uint32_t* pairs, int e) {
  const uint16_t bits = uint16_t(pairs[e / 2] >> (e % 2 * 16));
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return wide(value);
}
template <class T>
static inline void multiply_tile(float (&sum)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const shim::Operands* lanes = shim::me->block->gather({{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  const int lane = shim::me->number % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int deep = k / 8, at = k % 8 / 2;  // the half of the tile, and the lane among four
      sum[i] += element<T>(lanes[row % 8 * 4 + at].a + 2 * deep + row / 8, k % 2) *
                element<T>(lanes[column * 4 + at].b + deep, k % 2);
    }
  }
}
template <class T>
bool has_tiles_of() {
  return !std::is_same<T, BFloat16>::value || shim::setting("BIRNN_SHIM_CAPABILITY", 90) >= 80;
}

static inline uint64_t load_word(const uint64_t* p) {
  return std::atomic_ref<uint64_t>(*const_cast<uint64_t*>(p)).load(std::memory_order_relaxed);
}
static inline void store_word(uint64_t* p, uint64_t word) {
  std::atomic_ref<uint64_t>(*p).store(word, std::memory_order_relaxed);
}
static inline void store_for_host(uint32_t* p, uint32_t value) {
  std::atomic_ref<uint32_t>(*p).store(value, std::memory_order_relaxed);
}
static inline void let_others_run() { shim::me->block->pause(); }

// ---- blocks of a cluster ----

constexpr bool has_cluster_code = true;

static inline void cluster_barrier() { shim::me->block->cluster->wait(); }

// An address in shared memory: a place, and above it the block's rank in its cluster.
constexpr int place_bits = 20;
static inline uint32_t peer_address(uint32_t address, int rank) {
  return (address & ((1u << place_bits) - 1)) | uint32_t(rank) << place_bits;
}
static inline uint32_t shared_address(const void* p) {
  const shim::Block& b = *shim::me->block;
  const ptrdiff_t place = static_cast<const char*>(p) - reinterpret_cast<const char*>(b.shared.data());
  return peer_address(uint32_t(place), int(b.index.x % b.cluster->blocks.size()));
}
static inline char* shared_memory(uint32_t address) {
  shim::Block& b = *shim::me->block->cluster->blocks[address >> place_bits];
  return reinterpret_cast<char*>(b.shared.data()) + peer_address(address, 0);
}

static inline void begin_arrivals(uint64_t* barrier) {
  std::atomic_ref<uint64_t>(*barrier).store(0, std::memory_order_relaxed);
}
static inline void expect_bytes(uint64_t* barrier, uint32_t bytes) { shim::Arrivals::change(barrier, true, int32_t(bytes)); }
static inline bool has_arrived(uint64_t* barrier, uint32_t phase) { return shim::Arrivals::ended(barrier, phase); }
template <size_t N>
static inline void push(uint32_t to, const uint32_t (&words)[N], uint32_t barrier) {
  if (shim::me->block->mute) return;
  shim::Push push = {shim::me->block->cluster->blocks[to >> place_bits],
                     shared_memory(to),
                     {},
                     int(N),
                     reinterpret_cast<uint64_t*>(shared_memory(barrier))};
  std::copy_n(words, N, push.words);
  shim::send(push);
}
static inline void let_pushes_land() { shim::let_land(); }

static inline std::unique_ptr<shim::Block> block_of(const Grid& g, int64_t i, size_t shared_bytes) {
  return std::make_unique<shim::Block>(shim::Dim{unsigned(i % g.blocks_x), unsigned(i / g.blocks_x)},
                                       shim::Dim{unsigned(g.threads_x), unsigned(g.threads_y)}, shared_bytes);
}

template <class Args>
void launch(void (*kernel)(Args), const Grid& g, size_t shared_bytes, void* stream, const Args& args, const char*) {
  shim::enqueue(stream, [=] {
    for (int64_t i = 0; i < g.blocks_x * g.blocks_y; ++i) {
      std::vector<std::unique_ptr<shim::Block>> one;
      one.push_back(block_of(g, i, shared_bytes));
      shim::run(one, [&] { kernel(args); });
    }
  });
}

// All blocks at once, but for one that never comes where a test wants it so (BIRNN_SHIM_ABSENT_BLOCK).
template <class Args>
void launch_together(void (*kernel)(Args), const Grid& g, size_t shared_bytes, void* stream, const Args& args, const char*) {
  shim::enqueue(stream, [=] {
    const int64_t absent = shim::setting("BIRNN_SHIM_ABSENT_BLOCK", -1);
    std::vector<std::unique_ptr<shim::Block>> all;
    for (int64_t i = 0; i < g.blocks_x * g.blocks_y; ++i) {
      if (i != absent) all.push_back(block_of(g, i, shared_bytes));
    }
    shim::run(all, [&] { kernel(args); });
  });
}

// All clusters at once. What a block pushes never arrives where a test wants it so (BIRNN_SHIM_ABSENT_BLOCK).
template <class Args>
void launch_clusters(void (*kernel)(Args), const Grid& g, int blocks, size_t shared_bytes, void* stream, const Args& args,
                     const char*) {
  shim::enqueue(stream, [=] {
    const int64_t absent = shim::setting("BIRNN_SHIM_ABSENT_BLOCK", -1);
    std::vector<shim::Cluster> clusters(size_t(g.blocks_x / blocks));
    std::vector<std::unique_ptr<shim::Block>> all;
    for (int64_t i = 0; i < g.blocks_x; ++i) {
      all.push_back(block_of(g, i, shared_bytes));
      all.back()->mute = i == absent;
      clusters[size_t(i / blocks)].add(*all.back());
    }
    for (shim::Cluster& cluster : clusters) cluster.ready();
    shim::run(all, [&] { kernel(args); });
  });
}

inline int multiprocessors() { return int(shim::setting("BIRNN_SHIM_MULTIPROCESSORS", 8)); }

inline uint32_t* new_word_for_host() {
  static uint32_t word = 0;
  return &word;
}

// As on a device with this much shared memory for a block, and a little more for all that share a multiprocessor; with so many
// of these, registers for 512 threads on each, and no more than BIRNN_SHIM_CROWD blocks of a cluster kernel (each takes its time here).
template <class Args>
int64_t resident_blocks(void (*)(Args), int, size_t shared_bytes) {
  return int64_t(shared_bytes) <= shim::setting("BIRNN_SHIM_SHARED_BYTES", 227 * 1024) ? shim::setting("BIRNN_SHIM_BLOCKS", 132)
                                                                                       : 0;
}

template <class Args>
int64_t resident_clusters(void (*kernel)(Args), int blocks, int threads, size_t shared_bytes) {
  const bool any = shim::setting("BIRNN_SHIM_CAPABILITY", 90) >= 90 && resident_blocks(kernel, threads, shared_bytes);
  const int64_t room = shim::setting("BIRNN_SHIM_SHARED_BYTES", 227 * 1024) + 1024;
  const int64_t each =
      std::min(std::min(room / int64_t(shared_bytes + 1024), int64_t(512 / threads)), shim::setting("BIRNN_SHIM_CROWD", 1));
  return any ? multiprocessors() * each / blocks : 0;
}

inline bool is_capturing(void*) { return false; }
inline void set_device(int) {}

}  // namespace cuda
}  // namespace birnn
