// The backward op on CUDA: allocates gradients and buffers, and enqueues the work, last step first.
//
//   a direction's stream   recurrence of chunk 0 -> dg | of chunk 1 | ...                        stepwise, or in one launch
//   caller's stream                 dx, dW, db of chunk 0 | of chunk 1 | ...                     products over a whole chunk
//
// Two buffers of gate gradients per direction take turns, so that memory is bounded and the products of a chunk run under the
// recurrence of the next. Weight gradients are summed chunk by chunk, in float for the halves, always in the same order.
// Nothing here waits for the device. Not here: kernels (kernels.h), products (product.h).
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <vector>

#include "host.h"
#include "pair.h"
#include "product.h"

namespace birnn {
namespace cuda {

namespace {

// Gradients of one direction's weights, and their sums over the chunks so far.
struct WeightSums {
  at::Tensor w_ih, w_hh, bias, w_hr;  // A [G*H, I] in the order of columns, A [G*H, P], A [columns*H], A [P, H]
};

struct Direction {
  at::Tensor carry, rec, dc, du, dg[2], dq[2], exchange;
  at::Tensor w_ih;        // T [G*H, I], rows in the order of columns
  Mark done[2], free[2];  // dg[k] is written; dg[k] has been read
  WeightSums sums;
  BackwardChunk args;
};

class BackwardPass {
 public:
  BackwardPass(const LayerTensors& layer, const at::Tensor& output, const at::Tensor& saved, const at::Tensor& dy,
               const at::Tensor& dh_n, const at::Tensor& dc_n, bool need_weights)
      : l(layer),
        n(layer.n),
        output(output),
        saved(saved),
        dh_n(dh_n),
        dc_n(dc_n),
        need_weights(need_weights),
        G(cell_facts[l.mode].gates),
        columns(columns_of(l.mode)) {
    launch = {dtype_of(l.input.scalar_type()), l.mode, nullptr};
    choice = choose_tier(n, true, launch);
    steps = chunk_steps(n, columns.count, l.input);
    chunks = (n.T + steps - 1) / steps;
    options = l.input.options().requires_grad(false), wide = options.dtype(wide_type(l.input));
    for (int d = 0; d < n.D; ++d) {
      Direction& m = direction[d];
      m.carry = at::empty({n.B, n.P}, wide);
      if (choice.tier == Tier::stepwise) m.rec = at::empty({n.B, n.P}, wide);
      m.exchange = exchange_memory(choice, n, true, launch, options);
      if (cell_facts[l.mode].states == 2) m.dc = at::empty({n.B, n.H}, wide);
      if (n.projected) m.du = at::empty({n.B, n.H}, wide);
      for (int k = 0; k < (chunks > 1 ? 2 : 1); ++k) {
        m.dg[k] = at::empty({steps * n.B, columns.count * n.H}, options);
        if (n.projected) m.dq[k] = at::empty({steps * n.B, n.P}, options);
      }
      if (need_weights) {
        m.sums = {at::empty({G * n.H, n.I}, wide), at::empty({G * n.H, n.P}, wide), at::empty({columns.count * n.H}, wide),
                  n.projected ? at::empty({n.P, n.H}, wide) : at::Tensor()};
      }
      set_args(d, dy);
    }
    const bool matrix = as_matrix(l.input, l.batch_first, 0, n.T).defined() && !l.lengths.defined();
    if (need_weights && !matrix) rows_x = at::empty({steps * n.B, n.I}, options);
    if (need_weights) rows_h = at::empty({steps * n.B, n.P}, options);
    if (need_weights && n.projected) rows_u = at::empty({steps * n.B, n.H}, options);
    if (need_weights) part = at::empty({std::max({G * n.H * n.I, G * n.H * n.P, columns.count * n.H, n.P * n.H})}, wide);
  }

  // dx: one tensor per direction, or undefined.
  void run(const at::Tensor (&dx)[2], const at::Tensor& dh0, const at::Tensor& dc0) {
    if (dx[0].defined()) {
      for (int d = 0; d < n.D; ++d) direction[d].w_ih = in_columns(l.w_ih[d]);
      if (!as_matrix(dx[0], l.batch_first, 0, n.T).defined() || l.lengths.defined()) {
        rows_dx = at::empty({steps * n.B, n.I}, wide);
      }
    }
    Pair pair(l.input.device(), n.D);
    for (int d = 0; d < n.D; ++d) {
      const BackwardChunk& a = direction[d].args;
      start(address(dh_n, d * n.B * n.P), a.carry, true, n.B * n.P, on(pair, d));
      if (a.dc) start(address(dc_n, d * n.B * n.H), a.dc, true, n.B * n.H, on(pair, d));
      if (direction[d].exchange.defined()) clear_exchange(direction[d].exchange, pair.handle(d));
    }
    for (int64_t k = 0; k < chunks; ++k) {
      recur(pair, k);
      for (int d = 0; d < n.D; ++d) products(pair, d, k, dx[d]);
    }
    for (int d = 0; d < n.D; ++d) {
      const BackwardChunk& a = direction[d].args;
      const int64_t last = d == 0 ? 0 : n.T - 1;
      finish({a.carry, a.rec, mutable_address(dh0, d * n.B * n.P), n.B, n.P, n.T, last, a.lengths}, on(pair, d));
      if (!a.dc) continue;
      finish({a.dc, nullptr, mutable_address(dc0, d * n.B * n.H), n.B, n.H, n.T, last, nullptr}, on(pair, d));
    }
    pair.join();
  }

  // Five gradients of direction d as the op returns them; none has elements where there is no such weight.
  std::vector<at::Tensor> gradients(int d) const {
    const at::Tensor none = at::empty({0}, options);
    if (!need_weights || d >= n.D) return {none, none, none, none, none};
    const WeightSums& s = direction[d].sums;
    const auto bias = [&](const at::Tensor& b, bool input_side) {
      if (!b.defined()) return none;
      const at::Tensor db = at::empty({G * n.H}, options);
      for (int g = 0; g < G; ++g) {
        const int column = input_side ? columns.x_of[g] : columns.h_first + g;
        db.narrow(0, g * n.H, n.H).copy_(s.bias.narrow(0, column * n.H, n.H));
      }
      return db;
    };
    const at::Tensor dw_ih = at::empty({G * n.H, n.I}, options);
    for (int g = 0; g < G; ++g) {
      dw_ih.narrow(0, g * n.H, n.H).copy_(s.w_ih.narrow(0, (columns.x_of[g] - columns.x_first) * n.H, n.H));
    }
    const auto narrow = [&](const at::Tensor& t) { return t.defined() ? t.to(options.dtype()) : none; };
    return {dw_ih, narrow(s.w_hh), bias(l.b_ih[d], true), bias(l.b_hh[d], false), narrow(s.w_hr)};
  }

 private:
  const LayerTensors& l;
  const Sizes& n;
  const at::Tensor &output, &saved, &dh_n, &dc_n;
  const bool need_weights;
  const int64_t G;
  const Columns columns;
  at::TensorOptions options, wide;
  Launch launch;
  Choice choice;
  int64_t steps, chunks;
  Direction direction[2];
  at::Tensor rows_x, rows_h, rows_u, rows_dx, part;  // of the chunk at hand, on the caller's stream

  Launch on(const Pair& pair, int who) const { return {launch.dtype, launch.mode, pair.handle(who)}; }

  void set_args(int d, const at::Tensor& dy) {
    Direction& m = direction[d];
    BackwardChunk& a = m.args;
    a = {};
    a.n = n, a.dir = d;
    a.lengths = static_cast<const int64_t*>(address(l.lengths));
    if (saved.numel()) a.saved = address(saved, d * n.T * n.B * cell_facts[l.mode].saved * n.H);
    a.y = address(output, d * n.P);
    a.y_t = time_stride(output, l.batch_first), a.y_b = batch_stride(output, l.batch_first);
    a.h0 = address(l.h0, d * n.B * n.P), a.c0 = address(l.c0, d * n.B * n.H);
    if (dy.defined()) {
      a.dy = address(dy, d * n.P);
      a.dy_t = time_stride(dy, l.batch_first), a.dy_b = batch_stride(dy, l.batch_first);
    }
    a.w_hh = address(l.w_hh[d]);
    if (m.exchange.defined()) a.exchange = exchange_in(m.exchange), a.plan = choice.plan;
    a.carry = mutable_address(m.carry), a.rec = address(m.rec), a.dc = mutable_address(m.dc), a.du = address(m.du);
  }

  // Rows of w_ih [G*H, I] in the order of the columns of gate gradients.
  at::Tensor in_columns(const at::Tensor& w) const {
    bool same = true;
    for (int g = 0; g < G; ++g) same = same && columns.x_of[g] - columns.x_first == g;
    if (same) return w;
    const at::Tensor ordered = at::empty(w.sizes(), options);
    for (int g = 0; g < G; ++g) {
      ordered.narrow(0, (columns.x_of[g] - columns.x_first) * n.H, n.H).copy_(w.narrow(0, g * n.H, n.H));
    }
    return ordered;
  }

  void recur(Pair& pair, int64_t k) {
    int64_t count = 0;
    for (int d = 0; d < n.D; ++d) {
      Direction& m = direction[d];
      const Times t = chunk(k, steps, n.T, d == 1);
      count = t.end - t.begin;
      m.args.t_begin = t.begin, m.args.t_end = t.end;
      m.args.dg = mutable_address(m.dg[k % 2]), m.args.dq = mutable_address(m.dq[k % 2]);
      pair.wait(d, m.free[k % 2]);
      if (choice.tier == Tier::block) backward_block(m.args, on(pair, d));
      if (choice.tier == Tier::spread) backward_spread(m.args, on(pair, d));
      if (choice.tier == Tier::cluster) backward_cluster(m.args, on(pair, d));
    }
    for (int64_t s = 0; choice.tier == Tier::stepwise && s < count; ++s) {
      for (int d = 0; d < n.D; ++d) {
        step(pair, d, k % 2, d == 0 ? direction[d].args.t_end - 1 - s : direction[d].args.t_begin + s);
      }
    }
    for (int d = 0; d < n.D; ++d) direction[d].done[k % 2] = pair.mark(d);
  }

  void step(Pair& pair, int d, int64_t turn, int64_t t) {
    const Pair::On here(pair, d);
    Direction& m = direction[d];
    const int64_t row = (t - m.args.t_begin) * n.B;
    if (n.projected) {
      backward_project(m.args, t, on(pair, d));
      multiply(m.du, m.dq[turn].narrow(0, row, n.B), l.w_hr[d]);
    }
    backward_step(m.args, t, on(pair, d));
    multiply(m.rec, m.dg[turn].narrow(0, row, n.B).narrow(1, columns.h_first * n.H, G * n.H), l.w_hh[d]);
  }

  // What chunk k of direction d adds to the gradients, on the caller's stream.
  void products(Pair& pair, int d, int64_t k, const at::Tensor& dx) {
    const Pair::On here(pair, Pair::caller);
    Direction& m = direction[d];
    const Times t = chunk(k, steps, n.T, d == 1);
    const int64_t count = (t.end - t.begin) * n.B;
    const Launch caller = on(pair, Pair::caller);
    pair.wait(Pair::caller, m.done[k % 2]);
    const at::Tensor dg = m.dg[k % 2].narrow(0, 0, count);
    const at::Tensor dg_x = dg.narrow(1, columns.x_first * n.H, G * n.H), dg_h = dg.narrow(1, columns.h_first * n.H, G * n.H);
    if (dx.defined() && rows_dx.defined()) {
      multiply(rows_dx.narrow(0, 0, count), dg_x, m.w_ih);
      scatter({n.B, n.T, t.begin, t.end, n.I, m.args.lengths, address(rows_dx), mutable_address(dx),
               time_stride(dx, l.batch_first), batch_stride(dx, l.batch_first)},
              caller);
    } else if (dx.defined()) {
      multiply(as_matrix(dx, l.batch_first, t.begin, t.end), dg_x, m.w_ih);
    }
    if (need_weights) weight_products(d, k, t, dg, dg_x, dg_h, caller);
    m.free[k % 2] = pair.mark(Pair::caller);
  }

  void weight_products(int d, int64_t k, const Times& t, const at::Tensor& dg, const at::Tensor& dg_x, const at::Tensor& dg_h,
                       const Launch& caller) {
    Direction& m = direction[d];
    const BackwardChunk& a = m.args;
    const int64_t count = (t.end - t.begin) * n.B;
    const bool first = k == 0;
    const auto add = [&](const at::Tensor& sum, const at::Tensor& gradient, const at::Tensor& rows) {
      add_product(sum, gradient.t(), rows, first, part.narrow(0, 0, sum.numel()).view(sum.sizes()));
    };
    at::Tensor x;
    if (rows_x.defined()) {
      x = rows_x.narrow(0, 0, count);
      gather({Rows::copy, n, d, t.begin, t.end, n.I, a.lengths, address(l.input), time_stride(l.input, l.batch_first),
              batch_stride(l.input, l.batch_first), nullptr, mutable_address(rows_x)},
             caller);
    } else {
      x = as_matrix(l.input, l.batch_first, t.begin, t.end);
    }
    add(m.sums.w_ih, dg_x, x);
    gather({Rows::before, n, d, t.begin, t.end, n.P, a.lengths, a.y, a.y_t, a.y_b, a.h0, mutable_address(rows_h)}, caller);
    add(m.sums.w_hh, dg_h, rows_h.narrow(0, 0, count));
    if (n.projected) {
      gather({Rows::hidden, n, d, t.begin, t.end, n.H, a.lengths, a.saved, 0, 0, nullptr, mutable_address(rows_u)}, caller);
      add(m.sums.w_hr, m.dq[k % 2].narrow(0, 0, count), rows_u.narrow(0, 0, count));
    }
    if (l.b_ih[d].defined() || l.b_hh[d].defined()) {
      add_column_sums(m.sums.bias, dg, first, part.narrow(0, 0, m.sums.bias.numel()));
    }
  }
};

}  // namespace

ThirteenTensors layer_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                               const OptionalTensor& grad_c_n, BIRNN_LAYER_PARAMETERS, const at::Tensor& output_any_strides,
                               const at::Tensor& saved_any_strides, bool need_input, bool need_state, bool need_weights) {
  const at::AutoDispatchBelowADInplaceOrView below;  // the products are no business of autograd's
  LayerTensors l = check_layer(BIRNN_LAYER_ARGUMENTS);
  at::Tensor dy = grad_output.value_or(at::Tensor()), dh_n = grad_h_n.value_or(at::Tensor()),
             dc_n = grad_c_n.value_or(at::Tensor());
  check_backward(l, dy, dh_n, dc_n, output_any_strides, saved_any_strides);
  TORCH_CHECK(!dc_n.defined() || dc_n.dim() == 3, "grad_c_n: the CUDA kernels take that of c_n only, got shape ", dc_n.sizes());
  dtype_of(input.scalar_type());
  const c10::DeviceGuard device(input.device());
  use_device(input.device().index());
  check_alarm();
  make_dense(l);
  dy = feature_contiguous(dy), dh_n = contiguous(dh_n), dc_n = contiguous(dc_n);
  const at::Tensor output = output_any_strides.contiguous(), saved = saved_any_strides.contiguous();  // copies under vmap only

  const Sizes& n = l.n;
  const auto options = input.options().requires_grad(false);
  at::Tensor dx[2];
  for (int d = 0; need_input && d < n.D; ++d) dx[d] = at::empty(input.sizes(), options);
  const at::Tensor dh0 = at::empty({n.D, n.B, n.P}, options);
  const at::Tensor dc0 = l.mode == LSTM ? at::empty({n.D, n.B, n.H}, options) : at::empty({0}, options);
  const Precision precision(input.scalar_type());
  BackwardPass pass(l, output, saved, dy, dh_n, dc_n, need_weights);
  pass.run(dx, dh0, dc0);
  if (need_input && n.D == 2) dx[0].add_(dx[1]);
  const std::vector<at::Tensor> a = pass.gradients(0), b = pass.gradients(1);
  const auto if_wanted = [&](bool wanted, const at::Tensor& t) { return wanted ? t : at::empty({0}, options); };
  return {if_wanted(need_input, dx[0]),
          if_wanted(need_state, dh0),
          if_wanted(need_state, dc0),
          a[0],
          a[1],
          a[2],
          a[3],
          a[4],
          b[0],
          b[1],
          b[2],
          b[3],
          b[4]};
}

}  // namespace cuda
}  // namespace birnn
