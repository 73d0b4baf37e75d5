// The list of free blocks. Not here: which tensors use it (layer.cpp).
#include "memory.h"

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/ops/fill.h>
#include <c10/core/CPUAllocator.h>

#include "dispatch.h"
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstdlib>
#include <limits>
#include <memory>
#include <mutex>
#include <vector>

namespace birnn {

namespace {

constexpr size_t worth_keeping = size_t(128) << 10;  // what malloc begins to give back
constexpr size_t most_kept = size_t(256) << 20;
constexpr size_t page = size_t(4) << 10, huge_page = size_t(2) << 20;

struct Block {
  void* memory;
  size_t size;
};

struct Pool {
  std::mutex mutex;
  std::vector<Block> free;  // oldest first
  size_t bytes = 0;
};

// Never destroyed: tensors may be freed after static destructors have run.
Pool& pool() {
  static Pool* p = [] {
    Pool* made = new Pool;
    made->free.reserve(most_kept / worth_keeping + 1);
    return made;
  }();
  return *p;
}

void give_back(void* context) {
  const Block block = *static_cast<Block*>(context);
  delete static_cast<Block*>(context);
  Pool& p = pool();
  // Only if nobody holds the lock: a child forked at the wrong moment would wait for ever.
  std::unique_lock<std::mutex> lock(p.mutex, std::try_to_lock);
  if (!lock || block.size > most_kept) return std::free(block.memory);
  p.bytes += block.size;
  p.free.push_back(block);  // never grows beyond what pool() has reserved
  auto oldest = p.free.begin();
  for (; p.bytes > most_kept; ++oldest) {
    std::free(oldest->memory);
    p.bytes -= oldest->size;
  }
  p.free.erase(p.free.begin(), oldest);
}

// A free block of the right size, up to a quarter too large; none: null.
Block take(size_t size) {
  Pool& p = pool();
  std::unique_lock<std::mutex> lock(p.mutex, std::try_to_lock);
  if (!lock) return {nullptr, 0};
  for (size_t i = p.free.size(); i-- > 0;) {
    const Block block = p.free[i];
    if (block.size < size || block.size - size > size / 4) continue;
    p.free.erase(p.free.begin() + long(i));
    p.bytes -= block.size;
    return block;
  }
  return {nullptr, 0};
}

// Not aligned_alloc: it may ask for a size that is a multiple of the alignment (AddressSanitizer does).
void* aligned(size_t size) {
  void* memory = nullptr;
  return posix_memalign(&memory, size < huge_page / 2 ? page : huge_page, size) == 0 ? memory : nullptr;
}

struct Reusing final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    if (bytes < worth_keeping) return c10::GetCPUAllocator()->allocate(bytes);
    const size_t size = (bytes + page - 1) / page * page;
    auto block = std::make_unique<Block>(Block{nullptr, 0});  // first: where there is no memory for this, no other is lost
    *block = take(size);
    if (!block->memory) {
      *block = {aligned(size), size};
      if (!block->memory) {
        release_free_memory();
        block->memory = aligned(size);
      }
      TORCH_CHECK(block->memory, "birnn_ext: not enough memory: could not allocate ", bytes, " bytes");
#if defined(__linux__)
      if (size >= huge_page / 2) madvise(block->memory, size, MADV_HUGEPAGE);  // a wish; fewer page faults, fewer TLB misses
#endif
    }
    void* memory = block->memory;
    return {memory, block.release(), &give_back, c10::Device(c10::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

Reusing allocator;

}  // namespace

c10::DataPtr allocate(size_t bytes) { return allocator.allocate(bytes); }

at::Tensor empty_reusable(at::IntArrayRef shape, const at::Tensor& like) {
  at::Tensor t = at::detail::empty_generic(shape, &allocator, c10::DispatchKeySet(c10::DispatchKey::CPU), like.scalar_type(),
                                           std::nullopt);
  // As torch.empty does, so that an element that no kernel writes shows.
  if (at::globalContext().deterministicAlgorithms() && at::globalContext().deterministicFillUninitializedMemory()) {
    t.fill_(std::numeric_limits<double>::quiet_NaN());
  }
  return t;
}

void release_free_memory() {
  Pool& p = pool();
  std::unique_lock<std::mutex> lock(p.mutex, std::try_to_lock);
  if (!lock) return;
  for (const Block& b : p.free) std::free(b.memory);
  p.free.clear();
  p.bytes = 0;
}

}  // namespace birnn
