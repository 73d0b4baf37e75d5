// What csrc/cuda/seam.h says to nvcc, said to g++: the kernels' source, unchanged, runs on the CPU (engine.h).
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cmath>
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

static inline void block_barrier() { shim::me->block->wait(); }
static inline float exchange(float x, int mask) { return shim::me->block->exchange(x, mask); }

struct Grid {
  int64_t blocks_x, blocks_y;
  int threads_x, threads_y;
};

template <class Args>
void launch(void (*kernel)(Args), const Grid& g, size_t shared_bytes, void* stream, const Args& args, const char*) {
  shim::enqueue(stream, [=] {
    for (int64_t i = 0; i < g.blocks_x * g.blocks_y; ++i) {
      shim::Block block;
      block.index = {unsigned(i % g.blocks_x), unsigned(i / g.blocks_x)};
      block.size = {unsigned(g.threads_x), unsigned(g.threads_y)};
      block.shared.resize(shared_bytes / sizeof(std::max_align_t) + 1);
      // Shared memory holds anything when a block starts.
      std::fill_n(reinterpret_cast<float*>(block.shared.data()), shared_bytes / sizeof(float), NAN);
      const int count = g.threads_x * g.threads_y;
      for (int t = 0; t < count; ++t) {
        block.threads.push_back({&block, {unsigned(t % g.threads_x), unsigned(t / g.threads_x)}, t});
      }
      for (std::vector<float>& slot : block.slots) slot.assign(size_t(count), NAN);
      block.run([&] { kernel(args); });
    }
  });
}

// As on a device with this much shared memory for a block, and this many multiprocessors.
template <class Args>
int64_t resident_blocks(void (*)(Args), int, size_t shared_bytes) {
  return int64_t(shared_bytes) <= shim::setting("BIRNN_SHIM_SHARED_BYTES", 227 * 1024) ? shim::setting("BIRNN_SHIM_BLOCKS", 132)
                                                                                       : 0;
}

inline bool is_capturing(void*) { return false; }
inline void set_device(int) {}

}  // namespace cuda
}  // namespace birnn
