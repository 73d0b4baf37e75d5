// Matrix products and sums on torch's current stream: cuBLAS as torch calls it, so that its settings, its workspaces and graph
// capture hold here, too. Not here: which stream (pair.h), and kernels of our own (kernels.h).
//
// Every function is deterministic: the same bits for the same shapes on the same device.
#pragma once

#include <ATen/core/Tensor.h>

#include <memory>

namespace birnn {
namespace cuda {

// While it lives, products of float32 in this thread are made as cuDNN's recurrent layers would make them: in TF32 or not, by
// torch.backends.cudnn.rnn.fp32_precision (allow_tf32), whatever the setting for products.
//
// torch lets a thread switch TF32 off for itself, but on only for the whole process. So where cuDNN's setting is TF32 and that of
// products is not (torch's defaults), a product that another thread launches in the meantime may be made in TF32.
class Precision {
 public:
  explicit Precision(at::ScalarType dtype);
  ~Precision();
  Precision(const Precision&) = delete;
  Precision& operator=(const Precision&) = delete;

 private:
  bool raised_ = false;
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
