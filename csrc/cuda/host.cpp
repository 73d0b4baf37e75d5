// See host.h.
#include "host.h"

#include <ATen/ops/as_strided.h>

#include <algorithm>
#include <cstdlib>
#include <string>

namespace birnn {
namespace cuda {

Columns columns_of(Mode mode) {
  switch (mode) {
#define BIRNN_COLUMNS(cell, mode)                                           \
  case mode: {                                                              \
    typedef facts::cell C;                                                  \
    Columns c = {C::columns, C::x_column(0), C::h_column(0), {0, 0, 0, 0}}; \
    for (int g = 0; g < C::gates; ++g) {                                    \
      c.x_of[g] = C::x_column(g);                                           \
      c.x_first = std::min(c.x_first, c.x_of[g]);                           \
    }                                                                       \
    return c;                                                               \
  }
    BIRNN_FOR_EACH_CELL(BIRNN_COLUMNS)
#undef BIRNN_COLUMNS
    default:
      return {};
  }
}

Dtype dtype_of(const at::Tensor& input) {
  switch (input.scalar_type()) {
    case at::kFloat:
      return Dtype::F32;
    case at::kDouble:
      return Dtype::F64;
    case at::kHalf:
      return Dtype::F16;
    case at::kBFloat16:
      return Dtype::BF16;
    default:
      TORCH_CHECK(false, "input: the CUDA kernels are for dtypes Float, Double, Half and BFloat16, got ", input.scalar_type());
  }
}

at::ScalarType wide_type(const at::Tensor& input) { return input.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

at::Tensor contiguous(const at::Tensor& t) { return t.defined() ? t.contiguous() : t; }

at::Tensor feature_contiguous(const at::Tensor& t) {
  return !t.defined() || t.stride(2) == 1 || t.size(2) <= 1 ? t : t.contiguous();
}

void make_dense(LayerTensors& l) {
  TORCH_CHECK(!l.lengths.defined() || l.lengths.dim() == 1, "lengths: the CUDA kernels know no episodes, got shape ",
              l.lengths.sizes());
  l.input = feature_contiguous(l.input);
  l.h0 = contiguous(l.h0), l.c0 = contiguous(l.c0), l.lengths = contiguous(l.lengths);
  for (int d = 0; d < l.n.D; ++d) {
    for (at::Tensor* w : {&l.w_ih[d], &l.w_hh[d], &l.b_ih[d], &l.b_hh[d], &l.w_hr[d]}) *w = contiguous(*w);
  }
}

void* mutable_address(const at::Tensor& t, int64_t offset) {
  return t.defined() ? static_cast<char*>(t.data_ptr()) + offset * int64_t(t.element_size()) : nullptr;
}
const void* address(const at::Tensor& t, int64_t offset) {
  return t.defined() ? static_cast<const char*>(t.const_data_ptr()) + offset * int64_t(t.element_size()) : nullptr;
}

at::Tensor as_matrix(const at::Tensor& t, bool batch_first, int64_t begin, int64_t end) {
  const int64_t st = time_stride(t, batch_first), sb = batch_stride(t, batch_first);
  const int64_t B = t.size(batch_first ? 0 : 1), F = t.size(2);
  const int64_t row = B == 1 ? st : sb;
  const bool together = B <= 1 || end - begin == 1 || st == B * sb;
  if (!together || row < F || (F > 1 && t.stride(2) != 1)) return at::Tensor();
  return at::as_strided(t, {(end - begin) * B, F}, {row, 1}, t.storage_offset() + begin * st);
}

Times chunk(int64_t k, int64_t steps, int64_t T, bool upwards) {
  const int64_t done = k * steps, next = std::min(done + steps, T);
  return upwards ? Times{done, next} : Times{T - next, T - done};
}

int64_t chunk_steps(const Sizes& n, int64_t columns, const at::Tensor& input) {
  const char* text = std::getenv("BIRNN_CUDA_CHUNK_BYTES");
  const int64_t bytes = text && *text ? std::strtoll(text, nullptr, 10) : int64_t(16) << 20;
  const int64_t step = std::max<int64_t>(1, n.B * columns * n.H * (input.scalar_type() == at::kDouble ? 8 : 4));
  return std::clamp<int64_t>(bytes / step, 1, n.T);
}

bool use_block(const Sizes& n, bool backward, const Launch& launch) {
  const char* text = std::getenv("BIRNN_CUDA_TIER");
  const std::string tier = text && *text ? text : "auto";
  TORCH_CHECK_VALUE(tier == "auto" || tier == "stepwise" || tier == "block",
                    "BIRNN_CUDA_TIER: expected auto, stepwise or block, got '", tier, "'");
  const bool fits = tier != "stepwise" && block_fits(n, backward, launch);
  TORCH_CHECK(tier != "block" || fits, "BIRNN_CUDA_TIER=block: the recurrent weights of H = ", n.H,
              " do not fit into a block's ", "shared memory, the rows of B = ", n.B,
              " not onto the device at once, or the layer is float64 or has a projection");
  return fits;
}

}  // namespace cuda
}  // namespace birnn
