// The tensors of an op as the kernels want them: typed pointers, and no gaps. Not here: allocation of results (layer.cpp).
#pragma once

#include <ATen/core/Tensor.h>

#include "../ops.h"

namespace birnn {

// (Untyped, since torch's 16-bit floats are other types than the kernels'.)
template <class S>
const S* pointer(const at::Tensor& t) {
  return t.defined() ? static_cast<const S*>(t.const_data_ptr()) : nullptr;
}
template <class S>
S* data(const at::Tensor& t) {
  return static_cast<S*>(t.mutable_data_ptr());
}

// Calls f(S()) with the type of the tensors.
template <class F>
void with_type(at::ScalarType type, F&& f) {
  switch (type) {
    case at::kFloat:
      return f(float());
    case at::kDouble:
      return f(double());
    case at::kHalf:
      return f(float16());
    case at::kBFloat16:
      return f(bfloat16());
    default:
      TORCH_CHECK(false, "input: the CPU kernels are for dtypes Float, Double, Half and BFloat16, got ", type);
  }
}

// t, or a copy of it without gaps.
at::Tensor contiguous(const at::Tensor& t);

// The same, but time and batch may have any stride.
at::Tensor feature_contiguous(const at::Tensor& t);

// Makes all of a layer's tensors so; throws where the kernels do not know the dtype, or a length is out of range.
void make_dense(LayerTensors& l);

}  // namespace birnn
