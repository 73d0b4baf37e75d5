// Lets tests reach what of the CUDA half needs no GPU: ops of the library birnn_probe.
#include <ATen/Context.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "cuda/kernels.h"
#include "cuda/product.h"

namespace {

// What the CUDA half says when it is asked for a device.
std::string device() {
  try {
    birnn::cuda::use_device(0);
    return "device";
  } catch (const std::exception& error) {
    return error.what();
  }
}

// Whether products of this dtype would be made in TF32 inside a layer.
bool in_tf32(at::ScalarType dtype) {
  const birnn::cuda::Precision outer(dtype), inner(dtype);  // as of two layers in two threads
  return !at::NoTF32Guard::should_disable_tf32() &&
         at::globalContext().float32Precision(at::Float32Backend::CUDA, at::Float32Op::MATMUL) == at::Float32Precision::TF32;
}

// a b + a b and the sums of the columns of a, twice.
std::tuple<at::Tensor, at::Tensor> sums(const at::Tensor& a, const at::Tensor& b) {
  const auto fresh = [&](at::IntArrayRef shape) { return at::zeros(shape, a.options()).fill_(NAN); };
  const at::Tensor product = fresh({a.size(0), b.size(1)}), columns = fresh({a.size(1)});
  for (const bool first : {true, false}) {
    birnn::cuda::add_product(product, a, b, first, fresh(product.sizes()));
    birnn::cuda::add_column_sums(columns, a, first, fresh(columns.sizes()));
  }
  return {product, columns};
}

}  // namespace

TORCH_LIBRARY(birnn_probe, m) {
  m.def("device() -> str", &device);
  m.def("in_tf32(ScalarType dtype) -> bool", &in_tf32);
  m.def("sums(Tensor a, Tensor b) -> (Tensor, Tensor)", &sums);
}
