// The only checks of the ops' arguments, and the shapes of their results. Not here: schemas (schema.h), and what computes the
// ops, which is registered per device (cpu/layer.cpp, cuda/register.cpp).
#include "ops.h"

#include <c10/util/Exception.h>

#include "cells/facts.h"

namespace birnn {

Mode mode_of(std::string_view name) {
  std::string choices;
  for (int m = 0; m < MODE_COUNT; ++m) {
    if (name == cell_facts[m].name) return Mode(m);
    choices += (m ? ", " : "") + std::string(cell_facts[m].name);
  }
  TORCH_CHECK_VALUE(false, "mode: expected one of ", choices, ", got '", std::string(name), "'");
}

namespace {

at::Tensor or_undefined(const OptionalTensor& t) { return t.has_value() ? *t : at::Tensor(); }

void check_tensor(const char* name, const at::Tensor& t, at::IntArrayRef shape, const at::Tensor& like) {
  TORCH_CHECK(t.scalar_type() == like.scalar_type(), name, ": expected dtype ", like.scalar_type(), ", that of input, got ",
              t.scalar_type());
  TORCH_CHECK(t.device() == like.device(), name, ": expected device ", like.device(), ", that of input, got ", t.device());
  TORCH_CHECK(t.sizes() == shape, name, ": expected shape ", shape, ", got ", t.sizes());
}

void check_if_given(const char* name, const at::Tensor& t, at::IntArrayRef shape, const at::Tensor& like) {
  if (t.defined()) check_tensor(name, t, shape, like);
}

// Names for errors: direction 0 and direction 1.
constexpr const char* w_ih_name[] = {"w_ih", "w_ih_reverse"};
constexpr const char* w_hh_name[] = {"w_hh", "w_hh_reverse"};
constexpr const char* b_ih_name[] = {"b_ih", "b_ih_reverse"};
constexpr const char* b_hh_name[] = {"b_hh", "b_hh_reverse"};
constexpr const char* w_hr_name[] = {"w_hr", "w_hr_reverse"};

}  // namespace

void check_states(const LayerTensors& l) {
  const Sizes& n = l.n;
  check_if_given("h0", l.h0, {n.D, n.B, n.P}, l.input);
  TORCH_CHECK(!l.c0.defined() || l.mode == LSTM, "c0: goes with mode LSTM only, got mode ", cell_facts[l.mode].name);
  check_if_given("c0", l.c0, {n.D, n.B, n.H}, l.input);
  if (l.lengths.defined()) {
    TORCH_CHECK(l.lengths.scalar_type() == at::kLong, "lengths: expected dtype Long, got ", l.lengths.scalar_type());
    TORCH_CHECK(l.lengths.device() == l.input.device(), "lengths: expected device ", l.input.device(), ", that of input, got ",
                l.lengths.device());
    TORCH_CHECK(l.lengths.sizes() == at::IntArrayRef({n.B}) || l.lengths.sizes() == at::IntArrayRef({n.B, n.T}),
                "lengths: expected shape [", n.B, "], or [", n.B, ", ", n.T, "] for episodes, got ", l.lengths.sizes());
  }
}

LayerTensors check_layer(BIRNN_LAYER_PARAMETERS) {
  LayerTensors l;
  l.mode = mode_of(mode);
  l.batch_first = batch_first;
  l.input = input;
  l.h0 = or_undefined(h0), l.c0 = or_undefined(c0), l.lengths = or_undefined(lengths);
  l.w_ih[0] = w_ih, l.w_hh[0] = w_hh;
  l.b_ih[0] = or_undefined(b_ih), l.b_hh[0] = or_undefined(b_hh), l.w_hr[0] = or_undefined(w_hr);
  l.w_ih[1] = or_undefined(w_ih_reverse), l.w_hh[1] = or_undefined(w_hh_reverse);
  l.b_ih[1] = or_undefined(b_ih_reverse), l.b_hh[1] = or_undefined(b_hh_reverse);
  l.w_hr[1] = or_undefined(w_hr_reverse);

  TORCH_CHECK(input.dim() == 3, "input: expected 3 dimensions, ", batch_first ? "[B, T, I]" : "[T, B, I]", ", got shape ",
              input.sizes());
  TORCH_CHECK(w_ih.dim() == 2 && w_hh.dim() == 2, "w_ih, w_hh: expected 2 dimensions, got shapes ", w_ih.sizes(), " and ",
              w_hh.sizes());
  const int64_t G = cell_facts[l.mode].gates;
  TORCH_CHECK(w_ih.size(0) > 0 && w_ih.size(0) % G == 0, "w_ih: expected ", G, " * H rows for mode ", cell_facts[l.mode].name,
              ", got shape ", w_ih.sizes());
  Sizes& n = l.n;
  n.T = input.size(batch_first ? 1 : 0), n.B = input.size(batch_first ? 0 : 1), n.I = input.size(2);
  n.H = w_ih.size(0) / G;
  n.projected = l.w_hr[0].defined();
  n.P = n.projected ? l.w_hr[0].size(0) : n.H;
  n.D = l.w_ih[1].defined() ? 2 : 1;
  TORCH_CHECK(n.T > 0, "input: expected at least one time step, got shape ", input.sizes());
  TORCH_CHECK(n.P > 0, "w_hr: expected at least one row, got shape ", l.w_hr[0].sizes());
  TORCH_CHECK(!n.projected || l.mode == LSTM, "w_hr: a projection goes with mode LSTM only, got mode ",
              cell_facts[l.mode].name);

  for (int d = 0; d < n.D; ++d) {
    TORCH_CHECK(l.w_hh[d].defined(), w_hh_name[d], ": expected a tensor, since ", w_ih_name[d], " is given, got None");
    check_tensor(w_ih_name[d], l.w_ih[d], {G * n.H, n.I}, input);
    check_tensor(w_hh_name[d], l.w_hh[d], {G * n.H, n.P}, input);
    check_if_given(b_ih_name[d], l.b_ih[d], {G * n.H}, input);
    check_if_given(b_hh_name[d], l.b_hh[d], {G * n.H}, input);
    check_if_given(w_hr_name[d], l.w_hr[d], {n.P, n.H}, input);
    TORCH_CHECK(l.w_hr[d].defined() == n.projected, w_hr_name[d], ": expected in both directions or in none");
  }
  for (const at::Tensor* w : {&l.w_hh[1], &l.b_ih[1], &l.b_hh[1], &l.w_hr[1]}) {
    TORCH_CHECK(n.D == 2 || !w->defined(), "w_ih_reverse: expected a tensor, since other reverse weights are given, got None");
  }
  check_states(l);
  return l;
}

std::vector<int64_t> output_shape(const LayerTensors& l) {
  const Sizes& n = l.n;
  if (l.batch_first) return {n.B, n.T, n.D * n.P};
  return {n.T, n.B, n.D * n.P};
}

std::vector<int64_t> saved_shape(const LayerTensors& l) { return {l.n.D, l.n.T, l.n.B, cell_facts[l.mode].saved, l.n.H}; }

void check_into(const LayerTensors& l, const at::Tensor& h_n, const at::Tensor& c_n, int64_t row) {
  const Sizes& n = l.n;
  TORCH_CHECK(c_n.defined() == (l.mode == LSTM), "c_n: expected a tensor with mode LSTM and None else, got ",
              c_n.defined() ? "a tensor" : "None", " with mode ", cell_facts[l.mode].name);
  TORCH_CHECK(h_n.dim() == 3 && row >= 0 && row + n.D <= h_n.size(0), "h_n: expected shape [rows, ", n.B, ", ", n.P,
              "] with at least ", n.D, " rows from row ", row, " on, got ", h_n.sizes());
  check_tensor("h_n", h_n, {h_n.size(0), n.B, n.P}, l.input);
  check_if_given("c_n", c_n, {h_n.size(0), n.B, n.H}, l.input);
  TORCH_CHECK(h_n.is_contiguous() && (!c_n.defined() || c_n.is_contiguous()), "h_n, c_n: expected contiguous tensors");
}

void check_backward(const LayerTensors& l, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                    const at::Tensor& grad_c_n, const at::Tensor& output, const at::Tensor& saved) {
  const Sizes& n = l.n;
  const std::vector<int64_t> shape = output_shape(l);
  check_if_given("grad_output", grad_output, shape, l.input);
  check_if_given("grad_h_n", grad_h_n, {n.D, n.B, n.P}, l.input);
  TORCH_CHECK(!grad_c_n.defined() || l.mode == LSTM, "grad_c_n: goes with mode LSTM only, got mode ", cell_facts[l.mode].name);
  if (grad_c_n.defined() && grad_c_n.dim() == 4) {
    check_tensor("grad_c_n", grad_c_n, {n.D, n.T + 1, n.B, n.H}, l.input);
  } else {
    check_if_given("grad_c_n", grad_c_n, {n.D, n.B, n.H}, l.input);
  }
  check_tensor("output", output, shape, l.input);
  check_tensor("saved", saved, saved_shape(l), l.input);
}

}  // namespace birnn
