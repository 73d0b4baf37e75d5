// Products by ATen, and where TF32 is switched off.
#include "product.h"

#include <ATen/Context.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

namespace birnn {
namespace cuda {

Precision::Precision(at::ScalarType dtype) {
  const bool allowed = dtype != at::kFloat || at::globalContext().allowTF32CuDNN(at::Float32Op::RNN);
  if (!allowed) off_ = std::make_shared<at::NoTF32Guard>();
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
