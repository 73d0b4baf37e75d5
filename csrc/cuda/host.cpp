// See host.h.
#include "host.h"

#include <ATen/ops/as_strided.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>
#include <charconv>
#include <cstdlib>
#include <iterator>
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

Dtype dtype_of(at::ScalarType dtype) {
  switch (dtype) {
    case at::kFloat:
      return Dtype::F32;
    case at::kDouble:
      return Dtype::F64;
    case at::kHalf:
      return Dtype::F16;
    case at::kBFloat16:
      return Dtype::BF16;
    default:
      TORCH_CHECK(false, "input: the CUDA kernels are for dtypes Float, Double, Half and BFloat16, got ", dtype);
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

namespace {

std::string environment(const char* name, const char* otherwise) {
  const char* text = std::getenv(name);
  return text && *text ? text : otherwise;
}

// From about here on a product over the whole GPU per step is faster than one in each block: an estimate.
bool small_enough_to_spread(const Sizes& n) { return n.B * n.H <= 100'000; }

constexpr const char* tier_names[] = {"stepwise", "block", "spread", "cluster"};
constexpr const char* choices[] = {"", "auto", "stepwise", "block", "spread", "cluster"};  // of force_tier

std::atomic<int> forced{0};  // one of these

std::string describe(const Choice& choice) {
  const Plan& p = choice.plan;
  if (!p.units) return "";
  const std::string blocks = choice.tier == Tier::spread
                                 ? std::to_string(p.groups * p.splits) + " blocks a direction, each"
                                 : std::to_string(p.groups) + " x " + std::to_string(p.splits) + " blocks a direction, each";
  return blocks + " with " + std::to_string(p.rows) + " rows, " + std::to_string(p.units) + " units and " +
         std::to_string((p.bytes + 1023) / 1024) + " KiB, " + std::to_string(100 * (p.deep - p.left) / p.deep) +
         "% of the weights in registers" + (p.parts > 1 ? ", gate by gate" : "");
}

}  // namespace

Choice choose_tier(const Sizes& n, bool backward, const Launch& launch) {
  const int by_call = forced.load();
  const std::string tier = by_call ? choices[by_call] : environment("BIRNN_CUDA_TIER", "auto");
  const std::string by = by_call ? "birnn_ext.cuda_kernel('" + tier + "')" : "BIRNN_CUDA_TIER=" + tier;
  const std::string persistent = environment("BIRNN_PERSISTENT", "0");
  const bool any = tier == "auto";
  TORCH_CHECK_VALUE(any || std::count(std::begin(tier_names), std::end(tier_names), tier),
                    "BIRNN_CUDA_TIER: expected auto, stepwise, block, spread or cluster, got '", tier, "'");
  TORCH_CHECK_VALUE(persistent == "0" || persistent == "1", "BIRNN_PERSISTENT: expected 0 or 1, got '", persistent, "'");
  const bool persist = any && persistent == "1" && small_enough_to_spread(n);
  const Plan none = {};
  const Plan spread = persist || tier == "spread" ? spread_plan(n, backward, launch) : none;
  const Plan cluster = persist || tier == "cluster" ? cluster_plan(n, backward, launch) : none;
  if (cluster.units && (!spread.units || cluster.clocks < spread.clocks)) return {Tier::cluster, cluster};
  if (spread.units) return {Tier::spread, spread};
  TORCH_CHECK(
      tier != "spread", by, ": the recurrent weights of H = ", n.H, " with B = ", n.B,
      " rows do not fit into the registers and the shared memory of the device, or the layer is float64 or has a projection");
  TORCH_CHECK(tier != "cluster", by, ": the recurrent weights of H = ", n.H, " with B = ", n.B,
              " rows do not fit into the registers and the shared memory of clusters of blocks, or the device has none (they "
              "need sm_90), or the ",
              "layer is float64 or has a projection");
  if ((any || tier == "block") && block_fits(n, backward, launch)) return {Tier::block, none};
  TORCH_CHECK(tier != "block", by, ": the recurrent weights of H = ", n.H, " do not fit into a block's ",
              "shared memory, the rows of B = ", n.B,
              " not onto the device at once, or the layer is float64 or has a projection");
  return {Tier::stepwise, none};
}

std::string force_tier(c10::string_view tier) {
  const auto* const found = std::find(std::begin(choices), std::end(choices), tier);
  TORCH_CHECK_VALUE(found != std::end(choices), "kind: expected auto, stepwise, block, spread or cluster, got '", tier, "'");
  return choices[forced.exchange(int(found - choices))];
}

std::tuple<std::string, std::string> describe_tier(c10::string_view mode, at::ScalarType dtype, int64_t B, int64_t H, int64_t D,
                                                   bool projected, bool backward, int64_t device) {
  use_device(int(device));
  for (int m = 0; m < MODE_COUNT; ++m) {
    if (mode != cell_facts[m].name) continue;
    const Choice choice = choose_tier({1, B, 1, H, H, D, projected}, backward, {dtype_of(dtype), Mode(m), nullptr});
    return {tier_names[int(choice.tier)], describe(choice)};
  }
  TORCH_CHECK_VALUE(false, "mode: expected the name of a cell, got '", mode, "'");
}

at::Tensor exchange_memory(const Choice& choice, const Sizes& n, bool backward, const Launch& launch,
                           const at::TensorOptions& options) {
  if (!choice.plan.units) return at::Tensor();
  const int64_t words = choice.tier == Tier::spread ? spread_words(n, backward, launch) : 0;
  return at::empty({words + 1}, options.dtype(at::kLong));
}

Exchange exchange_in(const at::Tensor& memory) {
  auto* words = static_cast<uint64_t*>(memory.data_ptr());
  // About two seconds, if a look takes half a microsecond: an estimate.
  const std::string text = environment("BIRNN_CUDA_PATIENCE", "4000000");
  int64_t patience = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), patience);
  TORCH_CHECK_VALUE(error == std::errc() && end == text.data() + text.size() && patience > 0,
                    "BIRNN_CUDA_PATIENCE: expected how often a block looks before it gives up, 1 or more, got '", text, "'");
  return {words, words + memory.numel() - 1, alarm(), patience};
}

void clear_exchange(const at::Tensor& memory, void* stream) {
  start(nullptr, memory.data_ptr(), false, 2 * memory.numel(), {Dtype::F32, RNN_TANH, stream});  // zeros of 4 bytes
}

void check_alarm() {
  TORCH_CHECK(!take_alarm(),
              "birnn_ext: a persistent kernel of an earlier call gave up waiting for another of its blocks, and ",
              "filled what was left of its results with NaN. Leave BIRNN_PERSISTENT=1 out, and please report it.");
}

}  // namespace cuda
}  // namespace birnn
