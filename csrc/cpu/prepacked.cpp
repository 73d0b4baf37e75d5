// The ops for weights that are packed once for many calls, without derivatives. Not here: arithmetic.
#include "prepacked.h"

#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstring>

#include "../cells/facts.h"
#include "dense.h"
#include "table.h"

namespace birnn {

namespace {

constexpr char magic[] = "birnn_2";

Sizes sizes_of(const PackedHeader& h) { return {0, 0, h.I, h.H, h.P, 1, bool(h.projected), bool(h.narrow)}; }

at::ScalarType type_of(const PackedHeader& h) { return at::ScalarType(h.type); }

// Whether the kernels in use pack weights of this type for many calls. (Other halves are packed as the floats that they become.)
bool is_packed(at::ScalarType type) {
  return type == at::kFloat || type == at::kDouble || (type == at::kBFloat16 && table().multiplies_bfloat16());
}

int64_t bytes_of(const PackedHeader& h) {
  int64_t bytes = 0;
  with_type(type_of(h), [&](auto zero) {
    using S = decltype(zero);
    bytes = header_bytes + table().kernels<S>().forward[h.mode].packed_size(sizes_of(h)) * int64_t(sizeof(Wide<S>));
  });
  return bytes;
}

// Whether this is a header that pack_weights could have written for so many bytes. The bytes may be anybody's, so nothing is
// computed from them that could wrap.
bool is_sound(const PackedHeader& h, int64_t bytes) {
  if (std::memcmp(h.magic, magic, sizeof(magic)) != 0 || h.mode < 0 || h.mode >= MODE_COUNT) return false;
  if (h.projected > 1 || h.narrow > 1 || h.bias > 1) return false;
  const int single = int(at::kFloat), whole = int(at::kDouble), half = int(at::kBFloat16);
  if (h.type != single && ((h.type != whole && h.type != half) || h.narrow)) return false;
  if (h.I < 1 || h.H < 1 || h.P < 1 || (h.projected ? h.mode != LSTM : h.P != h.H)) return false;
  const double weights = double(cell_facts[h.mode].gates) * double(h.H) * (double(h.I) + double(h.P));
  return weights * double(at::elementSize(type_of(h))) / (h.narrow ? 2 : 1) <= double(bytes);
}

// The header of a tensor that can be computed with here.
PackedHeader header_of(const char* name, const at::Tensor& packed) {
  PackedHeader h;
  TORCH_CHECK(packed.scalar_type() == at::kByte && packed.dim() == 1 && packed.is_contiguous() && packed.device().is_cpu() &&
                  packed.numel() >= header_bytes,
              name, ": expected what pack_weights returned, got a tensor of dtype ", packed.scalar_type(), " and shape ",
              packed.sizes(), " on ", packed.device());
  std::memcpy(&h, packed.const_data_ptr(), sizeof(h));
  const bool here = std::strncmp(h.isa, table().name, sizeof(h.isa)) == 0;
  TORCH_CHECK(is_sound(h, packed.numel()) && (!here || is_packed(type_of(h))), name,
              ": expected what pack_weights of this version of birnn_ext returned, got other bytes");
  TORCH_CHECK(here, name, ": expected weights packed for ", table().name, ", the instruction set in use, got some for ",
              std::string(h.isa, strnlen(h.isa, sizeof(h.isa))), ": pack the weights again, here");
  TORCH_CHECK(packed.numel() == bytes_of(h), name, ": expected ", bytes_of(h), " bytes, got ", packed.numel());
  return h;
}

at::Tensor pack_weights(const at::Tensor& w_ih, const at::Tensor& w_hh, const OptionalTensor& b_ih, const OptionalTensor& b_hh,
                        const OptionalTensor& w_hr, std::string_view mode, bool narrow) {
  const char* others = narrow ? "" : is_packed(at::kBFloat16) ? ", Double or BFloat16" : " or Double";
  TORCH_CHECK(narrow ? w_ih.scalar_type() == at::kFloat : is_packed(w_ih.scalar_type()), "w_ih: expected dtype Float", others,
              ", got ", w_ih.scalar_type());
  TORCH_CHECK(w_ih.dim() == 2, "w_ih: expected 2 dimensions, got shape ", w_ih.sizes());
  // One step of one row, to have all else checked where every op has it checked.
  const at::Tensor input = at::empty({1, 1, w_ih.size(1)}, w_ih.options().requires_grad(false));
  const OptionalTensor none;
  LayerTensors l =
      check_layer(input, none, none, none, w_ih, w_hh, b_ih, b_hh, w_hr, none, none, none, none, none, mode, false);
  for (at::Tensor* w : {&l.w_ih[0], &l.w_hh[0], &l.b_ih[0], &l.b_hh[0], &l.w_hr[0]}) {
    if (w->defined()) *w = w->contiguous();
  }
  PackedHeader h = {};
  std::memcpy(h.magic, magic, sizeof(magic));
  std::strncpy(h.isa, table().name, sizeof(h.isa) - 1);
  h.mode = l.mode, h.type = int32_t(w_ih.scalar_type());
  h.I = l.n.I, h.H = l.n.H, h.P = l.n.P, h.projected = l.n.projected, h.narrow = narrow;
  h.bias = l.b_ih[0].defined() || l.b_hh[0].defined();
  at::Tensor packed = at::empty({bytes_of(h)}, input.options().dtype(at::kByte));
  std::memset(packed.mutable_data_ptr(), 0, size_t(packed.numel()));  // also between what is packed
  std::memcpy(packed.mutable_data_ptr(), &h, sizeof(h));
  with_type(type_of(h), [&](auto zero) {
    using S = decltype(zero);
    Forward<S> f = {};
    f.n = sizes_of(h);
    f.w[0] = {pointer<S>(l.w_ih[0]), pointer<S>(l.w_hh[0]), pointer<S>(l.b_ih[0]), pointer<S>(l.b_hh[0]),
              pointer<S>(l.w_hr[0])};
    table().kernels<S>().forward[h.mode].pack(f, 0, panels_of<Wide<S>>(packed));
  });
  return packed;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor> unpack_weights(const at::Tensor& packed) {
  const PackedHeader h = header_of("packed", packed);
  const int64_t rows = cell_facts[h.mode].gates * h.H;
  const auto options = packed.options().dtype(type_of(h));
  const auto room = [&](bool there, std::vector<int64_t> shape) {
    return at::empty(there ? shape : std::vector<int64_t>{0}, options);
  };
  const at::Tensor w_ih = room(true, {rows, h.I}), w_hh = room(true, {rows, h.P}), b_ih = room(h.bias, {rows}),
                   b_hh = room(h.bias, {rows}), w_hr = room(h.projected, {h.P, h.H});
  with_type(type_of(h), [&](auto zero) {
    using S = decltype(zero);
    const auto at = [](const at::Tensor& t) { return t.numel() ? data<S>(t) : nullptr; };
    table().kernels<S>().forward[h.mode].unpack(sizes_of(h), panels_of<Wide<S>>(packed),
                                                {at(w_ih), at(w_hh), at(b_ih), at(b_hh), at(w_hr)});
  });
  return {w_ih, w_hh, b_ih, b_hh, w_hr};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> packed_layer(const at::Tensor& input, const OptionalTensor& h0,
                                                            const OptionalTensor& c0, const OptionalTensor& lengths,
                                                            const at::Tensor& packed, const OptionalTensor& packed_reverse,
                                                            std::string_view mode, bool batch_first, int64_t hidden_size,
                                                            int64_t proj_size) {
  LayerTensors l;
  l.mode = mode_of(mode), l.batch_first = batch_first;
  l.input = input;
  l.h0 = h0.value_or(at::Tensor()), l.c0 = c0.value_or(at::Tensor()), l.lengths = lengths.value_or(at::Tensor());
  l.packed[0] = packed, l.packed[1] = packed_reverse.value_or(at::Tensor());
  TORCH_CHECK(input.dim() == 3, "input: expected 3 dimensions, ", batch_first ? "[B, T, I]" : "[T, B, I]", ", got shape ",
              input.sizes());
  const PackedHeader h = header_of("packed", packed);
  TORCH_CHECK(h.mode == l.mode && h.H == hidden_size && (h.projected ? h.P : 0) == proj_size,
              "packed: expected weights for mode ", mode, ", hidden_size ", hidden_size, " and proj_size ", proj_size,
              ", got mode ", cell_facts[h.mode].name, ", ", h.H, " and ", h.projected ? h.P : 0);
  if (l.packed[1].defined()) {
    PackedHeader r = header_of("packed_reverse", l.packed[1]);
    r.bias = h.bias;
    TORCH_CHECK(std::memcmp(&r, &h, sizeof(h)) == 0,
                "packed_reverse: expected weights of the mode, sizes and dtype of packed, got others");
  }
  TORCH_CHECK(input.scalar_type() == type_of(h), "input: expected dtype ", type_of(h), ", that of the packed weights, got ",
              input.scalar_type());
  TORCH_CHECK(input.size(2) == h.I, "input: expected ", h.I, " features, got shape ", input.sizes());
  Sizes& n = l.n;
  n = sizes_of(h);
  n.T = input.size(batch_first ? 1 : 0), n.B = input.size(batch_first ? 0 : 1), n.D = l.packed[1].defined() ? 2 : 1;
  TORCH_CHECK(n.T > 0, "input: expected at least one time step, got shape ", input.sizes());
  check_states(l);
  const auto options = input.options().requires_grad(false);
  const at::Tensor h_n = at::empty({n.D, n.B, n.P}, options);
  const at::Tensor c_n = at::empty(l.mode == LSTM ? std::vector<int64_t>{n.D, n.B, n.H} : std::vector<int64_t>{0}, options);
  return {std::get<0>(run_layer(l, false, h_n, c_n)), h_n, c_n};
}

}  // namespace

TORCH_LIBRARY_IMPL(birnn_ext, CPU, m) {
  m.impl("pack_weights", &pack_weights);
  m.impl("unpack_weights", &unpack_weights);
  m.impl("packed_layer", &packed_layer);
}

}  // namespace birnn
