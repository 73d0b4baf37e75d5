// Math<V> of the cells (cells/cells.h) for one number on the device: the functions of CUDA's own library at full precision, not
// its fast approximations, whose errors would show next to cuDNN's in float.
// Not here: half precision. Cells compute in float or double.
#pragma once

#include <cuda/seam.h>

namespace birnn {
namespace cuda {

template <class V>
struct Math {
  BIRNN_DEVICE V zero() { return V(0); }
  BIRNN_DEVICE V relu(V x) { return x < V(0) ? V(0) : x; }  // NaN passes, as in torch
  BIRNN_DEVICE V relu_backward(V y, V dy) { return y <= V(0) ? V(0) : dy; }
  BIRNN_DEVICE V sigmoid(V x) { return V(1) / (V(1) + exponential(-x)); }  // exp overflows to infinity: then 0, as it should
  BIRNN_DEVICE V tanh(V x) { return tangent(x); }

 private:
  BIRNN_DEVICE float exponential(float x) { return expf(x); }
  BIRNN_DEVICE double exponential(double x) { return ::exp(x); }
  BIRNN_DEVICE float tangent(float x) { return tanhf(x); }
  BIRNN_DEVICE double tangent(double x) { return ::tanh(x); }
};

}  // namespace cuda
}  // namespace birnn
