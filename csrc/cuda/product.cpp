// Products by ATen, and the setting of TF32.
#include "product.h"

#include <ATen/Context.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include <mutex>

namespace birnn {
namespace cuda {

namespace {

constexpr at::Float32Backend backend = at::Float32Backend::CUDA;
constexpr at::Float32Op op = at::Float32Op::MATMUL;
constexpr at::Float32Precision tf32 = at::Float32Precision::TF32;

// How many layers want TF32 for products at this moment; the first switches it on, the last puts back what it found.
std::mutex mutex;
int wanting = 0;
at::Float32Precision found;

void raise() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (wanting++ > 0) return;
  at::Context& context = at::globalContext();
  found = context.float32Precision(backend, op);
  // What was read may be inherited from a more general setting; then it must be inherited again afterwards.
  context.setFloat32Precision(backend, op, at::Float32Precision::NONE);
  if (context.float32Precision(backend, op) == found) found = at::Float32Precision::NONE;
  context.setFloat32Precision(backend, op, tf32);
}

void lower() {
  const std::lock_guard<std::mutex> lock(mutex);
  if (--wanting == 0) at::globalContext().setFloat32Precision(backend, op, found);
}

}  // namespace

Precision::Precision(at::ScalarType dtype) {
  if (dtype != at::kFloat) return;
  if (!at::globalContext().allowTF32CuDNN(at::Float32Op::RNN)) {
    off_ = std::make_shared<at::NoTF32Guard>();
    return;
  }
  bool on;
  {
    const std::lock_guard<std::mutex> lock(mutex);
    on = wanting == 0 && at::globalContext().float32Precision(backend, op) == tf32;
  }
  if (on) return;
  raise();
  raised_ = true;
}

Precision::~Precision() {
  if (raised_) lower();
}

void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  at::Tensor to = out;
  if (out.scalar_type() == a.scalar_type()) {
    at::mm_out(to, a, b);
  } else {
    at::mm_out(to, a, b, out.scalar_type());
  }
}

void add_product(const at::Tensor& sum, const at::Tensor& a, const at::Tensor& b, bool first, const at::Tensor& part) {
  if (first) return multiply(sum, a, b);
  at::Tensor to = sum;
  if (sum.scalar_type() == a.scalar_type()) {
    at::addmm_out(to, sum, a, b);
  } else {
    multiply(part, a, b);
    to.add_(part);
  }
}

void add_column_sums(const at::Tensor& sum, const at::Tensor& a, bool first, const at::Tensor& part) {
  at::Tensor to = first ? sum : part, total = sum;
  const int64_t rows[] = {0};
  at::sum_out(to, a, at::IntArrayRef(rows), false, sum.scalar_type());
  if (!first) total.add_(part);
}

}  // namespace cuda
}  // namespace birnn
