// What the host sides of both passes share: dtypes, memory as matrices, how many steps make a chunk, and which kernels run.
// Not here: streams (pair.h), products (product.h), kernels (kernels.h).
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <tuple>

#include "../cells/facts.h"
#include "../ops.h"
#include "kernels.h"

namespace birnn {
namespace cuda {

using ThirteenTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                   at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

// The ops; arguments as in the schemas (../schema.h).
std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> layer(BIRNN_LAYER_PARAMETERS, bool train);
std::tuple<at::Tensor, at::Tensor> layer_into(BIRNN_LAYER_PARAMETERS, bool train, const at::Tensor& h_n,
                                              const OptionalTensor& c_n, int64_t row);
ThirteenTensors layer_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                               const OptionalTensor& grad_c_n, BIRNN_LAYER_PARAMETERS, const at::Tensor& output,
                               const at::Tensor& saved, bool need_input, bool need_state, bool need_weights);

// Columns of gate gradients (cells/cells.h): how many, where each side begins, and where a gate of the input side is.
struct Columns {
  int count, x_first, h_first, x_of[4];
};
Columns columns_of(Mode mode);

// Throws for a dtype without kernels.
Dtype dtype_of(at::ScalarType dtype);
at::ScalarType wide_type(const at::Tensor& input);  // what is accumulated in: kernels.h, A

// Copies of tensors whose layout no kernel takes: features must be contiguous in input, output and their gradients, and all of
// the states and weights (a product of a strided one would copy it, and again at every step).
void make_dense(LayerTensors& l);
at::Tensor contiguous(const at::Tensor& t);
at::Tensor feature_contiguous(const at::Tensor& t);

inline int64_t time_stride(const at::Tensor& t, bool batch_first) { return t.stride(batch_first ? 1 : 0); }
inline int64_t batch_stride(const at::Tensor& t, bool batch_first) { return t.stride(batch_first ? 0 : 1); }

// The address of element `offset`; null of an undefined tensor.
const void* address(const at::Tensor& t, int64_t offset = 0);
void* mutable_address(const at::Tensor& t, int64_t offset = 0);

// Rows [begin, end) in time of a [T, B, F] tensor (or [B, T, F]) as one matrix [(end - begin) * B, F]; undefined if they do not
// lie in memory as one.
at::Tensor as_matrix(const at::Tensor& t, bool batch_first, int64_t begin, int64_t end);

// Times of chunk k when T steps are walked through, upwards or downwards, `steps` at a time.
struct Times {
  int64_t begin, end;
};
Times chunk(int64_t k, int64_t steps, int64_t T, bool upwards);

// Steps of a chunk whose gate values fill about 16 MiB (BIRNN_CUDA_CHUNK_BYTES), which bounds the memory beside the results.
int64_t chunk_steps(const Sizes& n, int64_t columns, const at::Tensor& input);

// Which kernels run (kernels.h), and the plan of those of many blocks. force_tier or else BIRNN_CUDA_TIER leaves the choice
// ("auto", the default) or names one: an error if it does not fit. Left the choice, spread and cluster are taken under
// BIRNN_PERSISTENT=1 only, then wherever one of them fits, the one whose step has fewer clocks: they have run on no GPU yet.
enum class Tier { stepwise, block, spread, cluster };
struct Choice {
  Tier tier;
  Plan plan;  // without units where one block is enough, or none
};
Choice choose_tier(const Sizes& n, bool backward, const Launch& launch);

// The op that says which it would be ("stepwise", "block", "spread" or "cluster"), and more in words, or nothing.
#define BIRNN_TIER_SCHEMA \
  "cuda_tier(str mode, ScalarType dtype, int B, int H, int D, bool projected, bool backward, int device) -> (str, str)"
std::tuple<std::string, std::string> describe_tier(c10::string_view mode, at::ScalarType dtype, int64_t B, int64_t H, int64_t D,
                                                   bool projected, bool backward, int64_t device);

// The op that forces one of them, "auto" (none) or "" (as BIRNN_CUDA_TIER says) in the whole process; it returns what was forced.
#define BIRNN_FORCE_SCHEMA "force_cuda_tier(str tier) -> str"
std::string force_tier(c10::string_view tier);

// Memory in which the blocks of one direction hand each other what they have computed, or only that they have given up; undefined
// where there is no plan. And the same as the kernels know it. To be cleared on the direction's stream first.
at::Tensor exchange_memory(const Choice& choice, const Sizes& n, bool backward, const Launch& launch,
                           const at::TensorOptions& options);
Exchange exchange_in(const at::Tensor& memory);
void clear_exchange(const at::Tensor& memory, void* stream);

// Throws if a kernel of an earlier call has given up; its results are NaN. Nobody waits for the device to find out.
void check_alarm();

}  // namespace cuda
}  // namespace birnn
