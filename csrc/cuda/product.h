// Matrix products and sums on torch's current stream: cuBLAS as torch calls it, so that its settings, its workspaces and graph
// capture hold here, too. Not here: which stream (pair.h), and kernels of our own (kernels.h).
//
// Every function is deterministic: the same bits for the same shapes on the same device.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

namespace birnn {
namespace cuda {

// While it lives, products of float32 in this thread are made in TF32 only where two settings of torch allow it: that of
// products, torch.backends.cuda.matmul.fp32_precision (by default it does not; torch.set_float32_matmul_precision), and that of
// cuDNN's recurrent layers, torch.backends.cudnn.rnn.fp32_precision (by default it does).
//
// So by default a layer computes in float32 where cuDNN's would compute in TF32: slower, and more precise. The other way is not
// open to us: torch lets a thread switch TF32 off for itself, but on for the whole process only, under the products that other
// threads make in the meantime.
class Precision {
 public:
  explicit Precision(at::ScalarType dtype);
  Precision(const Precision&) = delete;
  Precision& operator=(const Precision&) = delete;

 private:
  std::shared_ptr<void> off_;
};

// out [M, N] = a [M, K] b [K, N]. `out` has the dtype of a and b, or is float where they are half or bfloat16: then nothing is
// rounded on the way.
void multiply(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b);

// sum [M, N] = a b, or += unless `first`. `part` is memory like sum, used where a and b are half or bfloat16 and sum is float.
void add_product(const at::Tensor& sum, const at::Tensor& a, const at::Tensor& b, bool first, const at::Tensor& part);

// sum [N] = the sums of the columns of a [M, N], or += unless `first`; part [N].
void add_column_sums(const at::Tensor& sum, const at::Tensor& a, bool first, const at::Tensor& part);

}  // namespace cuda
}  // namespace birnn
