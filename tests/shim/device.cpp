// Streams and products of the shim, and the ops torch.ops.birnn_shim.layer and layer_backward, which run the CUDA backend (host
// side and kernels, from the same source) on CPU tensors. Work is enqueued as on a GPU and runs at the join, in a random order
// that the events allow.
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>
#include <torch/library.h>

#include "cuda/host.h"
#include "cuda/pair.h"
#include "cuda/product.h"
#include "engine.h"
#include "schema.h"

namespace birnn {
namespace cuda {

struct Pair::Streams {
  std::vector<shim::Queue> all;
  bool joined = false;
  int64_t waits = 0;

  shim::Queue& of(int who) { return who == caller ? all.back() : all[size_t(who)]; }
};

namespace {

int64_t products = 0;  // since the last fork

// On a GPU a product may need memory for its workspace, and there may be none (BIRNN_SHIM_FAIL_PRODUCT: at the how-manieth).
void count_product() { TORCH_CHECK(products++ != shim::setting("BIRNN_SHIM_FAIL_PRODUCT", -1), "no memory for a product"); }

}  // namespace

Pair::Pair(const at::Device&, int64_t directions) : streams_(std::make_unique<Streams>()) {
  products = 0;
  streams_->all.resize(size_t(directions) + 1);
  const Mark fork = mark(caller);
  for (int d = 0; d < directions; ++d) wait(d, fork);
}

void Pair::join() {
  streams_->joined = true;
  shim::drain(streams_->all);
}
Pair::~Pair() {
  if (!streams_->joined) join();
}

void* Pair::handle(int who) const { return &streams_->of(who); }

Mark Pair::mark(int who) {
  const auto event = std::make_shared<shim::Event>();
  shim::enqueue(handle(who), [event] { event->happened = true; });
  return event;
}

void Pair::wait(int who, const Mark& mark) {
  // A wait that a mutant leaves out (BIRNN_SHIM_SKIP_WAIT: the how-manieth).
  if (!mark || streams_->waits++ == shim::setting("BIRNN_SHIM_SKIP_WAIT", -1)) return;
  streams_->of(who).items.push_back({nullptr, std::static_pointer_cast<shim::Event>(mark)});
}

Pair::On::On(const Pair& pair, int who) {
  shim::Queue* before = shim::current;
  guard_ = std::shared_ptr<void>(nullptr, [before](void*) { shim::current = before; });
  shim::current = static_cast<shim::Queue*>(pair.handle(who));
}
Pair::On::~On() = default;

Precision::Precision(at::ScalarType) {}

void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  count_product();
  shim::enqueue(shim::current, [=] { at::Tensor(out).copy_(at::mm(a.to(out.dtype()), b.to(out.dtype()))); });
}
void add_product(const at::Tensor& sum, const at::Tensor& a, const at::Tensor& b, bool first, const at::Tensor&) {
  count_product();
  shim::enqueue(shim::current, [=] {
    const at::Tensor product = at::mm(a.to(sum.dtype()), b.to(sum.dtype()));
    first ? at::Tensor(sum).copy_(product) : at::Tensor(sum).add_(product);
  });
}
void add_column_sums(const at::Tensor& sum, const at::Tensor& a, bool first, const at::Tensor&) {
  shim::enqueue(shim::current, [=] {
    const at::Tensor sums = at::sum(a.to(sum.dtype()), {0}, false);
    first ? at::Tensor(sum).copy_(sums) : at::Tensor(sum).add_(sums);
  });
}

}  // namespace cuda
}  // namespace birnn

TORCH_LIBRARY(birnn_shim, m) {
  m.def(BIRNN_LAYER_SCHEMA);
  m.def(BIRNN_INTO_SCHEMA);
  m.def(BIRNN_BACKWARD_SCHEMA);
  m.def(BIRNN_TIER_SCHEMA, &birnn::cuda::describe_tier);
  m.def(BIRNN_FORCE_SCHEMA, &birnn::cuda::force_tier);
}
TORCH_LIBRARY_IMPL(birnn_shim, CPU, m) {
  m.impl("layer", &birnn::cuda::layer);
  m.impl("layer_into", &birnn::cuda::layer_into);
  m.impl("layer_backward", &birnn::cuda::layer_backward);
}
