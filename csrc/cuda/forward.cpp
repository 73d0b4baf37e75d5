// The forward op on CUDA: allocates results and buffers, and enqueues the work.
//
//   caller's stream   project chunk 0 | project chunk 1 | wait for 0, project chunk 2 | ...     pre = x W_ih^T
//   a direction's               recurrence of chunk 0 | of chunk 1 | ...                        stepwise, or in one launch
//
// Two buffers of pre-activations per direction take turns, so that memory is bounded and the next chunk's projection runs under
// the recurrence of the last. Nothing here waits for the device. Not here: kernels (kernels.h), products (product.h).
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <c10/core/DeviceGuard.h>

#include <vector>

#include "host.h"
#include "pair.h"
#include "product.h"

namespace birnn {
namespace cuda {

namespace {

// What one direction has between its steps and chunks.
struct Direction {
  at::Tensor pre[2], rec, h, c, u, projected, exchange;
  at::Tensor w_hh_t, w_hr_t;
  Mark ready[2], done[2];  // pre[k] is written; pre[k] has been read
  ForwardChunk args;
};

class ForwardPass {
 public:
  ForwardPass(const LayerTensors& layer, const at::Tensor& output, const at::Tensor& h_n, const at::Tensor& c_n,
              const at::Tensor& saved)
      : l(layer), n(layer.n), h_n(h_n), c_n(c_n), GH(cell_facts[l.mode].gates * n.H) {
    launch = {dtype_of(l.input.scalar_type()), l.mode, nullptr};
    choice = choose_tier(n, false, launch);
    steps = chunk_steps(n, cell_facts[l.mode].gates, l.input);
    chunks = (n.T + steps - 1) / steps;
    const auto options = l.input.options().requires_grad(false), wide = options.dtype(wide_type(l.input));
    for (int d = 0; d < n.D; ++d) {
      Direction& m = direction[d];
      for (int k = 0; k < (chunks > 1 ? 2 : 1); ++k) m.pre[k] = at::empty({steps * n.B, GH}, wide);
      m.h = at::empty({n.B, n.P}, options);
      if (cell_facts[l.mode].states == 2) m.c = at::empty({n.B, n.H}, wide);
      if (choice.tier == Tier::stepwise) m.rec = at::empty({n.B, GH}, wide), m.w_hh_t = l.w_hh[d].t();
      m.exchange = exchange_memory(choice, n, false, launch, options);
      if (n.projected) {
        m.u = at::empty({n.B, n.H}, options), m.projected = at::empty({n.B, n.P}, wide);
        m.w_hr_t = l.w_hr[d].t();
      }
      ForwardChunk& a = m.args;
      a = {};
      a.n = n, a.dir = d;
      a.lengths = static_cast<const int64_t*>(address(l.lengths));
      a.rec = address(m.rec), a.w_hh = address(l.w_hh[d]), a.b_ih = address(l.b_ih[d]), a.b_hh = address(l.b_hh[d]);
      a.h = mutable_address(m.h), a.c = mutable_address(m.c);
      a.u = mutable_address(m.u), a.projected = address(m.projected);
      a.y = mutable_address(output, d * n.P);
      a.y_t = time_stride(output, l.batch_first), a.y_b = batch_stride(output, l.batch_first);
      if (m.exchange.defined()) a.exchange = exchange_in(m.exchange), a.plan = choice.plan;
      if (saved.numel()) a.saved = mutable_address(saved, d * n.T * n.B * cell_facts[l.mode].saved * n.H);
    }
    if (!as_matrix(l.input, l.batch_first, 0, n.T).defined()) rows = at::empty({steps * n.B, n.I}, options);
  }

  void run() {
    Pair pair(l.input.device(), n.D);
    for (int d = 0; d < n.D; ++d) {
      start(address(l.h0, d * n.B * n.P), direction[d].args.h, false, n.B * n.P, on(pair, d));
      if (direction[d].args.c) start(address(l.c0, d * n.B * n.H), direction[d].args.c, true, n.B * n.H, on(pair, d));
      if (direction[d].exchange.defined()) clear_exchange(direction[d].exchange, pair.handle(d));
    }
    project(pair, 0);
    for (int64_t k = 0; k < chunks; ++k) {
      if (k + 1 < chunks) project(pair, k + 1);
      recur(pair, k);
    }
    for (int d = 0; d < n.D; ++d) {
      const ForwardChunk& a = direction[d].args;
      start(a.h, mutable_address(h_n, d * n.B * n.P), false, n.B * n.P, on(pair, d));
      if (!a.c) continue;
      finish({a.c, nullptr, mutable_address(c_n, d * n.B * n.H), n.B, n.H, n.T, 0, nullptr}, on(pair, d));
    }
    pair.join();
  }

 private:
  const LayerTensors& l;
  const Sizes& n;
  const at::Tensor &h_n, &c_n;
  const int64_t GH;
  Launch launch;
  Choice choice;
  int64_t steps, chunks;
  Direction direction[2];
  at::Tensor rows;  // the chunk's input rows, where they do not lie in memory as a matrix

  Launch on(const Pair& pair, int who) const { return {launch.dtype, launch.mode, pair.handle(who)}; }

  // pre[k % 2] = x W_ih^T for chunk k of each direction, on the caller's stream.
  void project(Pair& pair, int64_t k) {
    const Pair::On here(pair, Pair::caller);
    for (int d = 0; d < n.D; ++d) {
      Direction& m = direction[d];
      const Times t = chunk(k, steps, n.T, d == 0);
      const int64_t count = (t.end - t.begin) * n.B;
      pair.wait(Pair::caller, m.done[k % 2]);
      at::Tensor x;
      if (rows.defined()) {
        x = rows.narrow(0, 0, count);
        const int64_t x_t = time_stride(l.input, l.batch_first), x_b = batch_stride(l.input, l.batch_first);
        gather({Rows::copy, n, d, t.begin, t.end, n.I, nullptr, address(l.input), x_t, x_b, nullptr, mutable_address(rows)},
               on(pair, Pair::caller));
      } else {
        x = as_matrix(l.input, l.batch_first, t.begin, t.end);
      }
      multiply(m.pre[k % 2].narrow(0, 0, count), x, l.w_ih[d].t());
      m.ready[k % 2] = pair.mark(Pair::caller);
    }
  }

  // The recurrence over chunk k of both directions, each on its stream.
  void recur(Pair& pair, int64_t k) {
    int64_t count = 0;
    for (int d = 0; d < n.D; ++d) {
      Direction& m = direction[d];
      const Times t = chunk(k, steps, n.T, d == 0);
      count = t.end - t.begin;
      m.args.t_begin = t.begin, m.args.t_end = t.end, m.args.pre = address(m.pre[k % 2]);
      pair.wait(d, m.ready[k % 2]);
      if (choice.tier == Tier::block) forward_block(m.args, on(pair, d));
      if (choice.tier == Tier::spread) forward_spread(m.args, on(pair, d));
      if (choice.tier == Tier::cluster) forward_cluster(m.args, on(pair, d));
    }
    // Step by step in turn, so that neither stream waits until the other's steps are all enqueued.
    for (int64_t s = 0; choice.tier == Tier::stepwise && s < count; ++s) {
      for (int d = 0; d < n.D; ++d) step(pair, d, d == 0 ? direction[d].args.t_begin + s : direction[d].args.t_end - 1 - s);
    }
    for (int d = 0; d < n.D; ++d) direction[d].done[k % 2] = pair.mark(d);
  }

  void step(Pair& pair, int d, int64_t t) {
    const Pair::On here(pair, d);
    Direction& m = direction[d];
    multiply(m.rec, m.h, m.w_hh_t);
    forward_step(m.args, t, on(pair, d));
    if (!n.projected) return;
    multiply(m.projected, m.u, m.w_hr_t);
    forward_project(m.args, t, on(pair, d));
  }
};

// Runs the checked layer; h_n and c_n are contiguous and get the final states at their beginning.
std::tuple<at::Tensor, at::Tensor> run(LayerTensors& l, bool train, const at::Tensor& h_n, const at::Tensor& c_n) {
  const auto type = l.input.scalar_type();
  dtype_of(type);
  use_device(l.input.device().index());
  check_alarm();
  make_dense(l);
  const auto options = l.input.options().requires_grad(false);
  const at::Tensor output = at::empty(output_shape(l), options);
  const at::Tensor saved = train ? at::empty(saved_shape(l), options) : at::empty({0}, options);
  if (l.n.B > 0) {
    const Precision precision(type);
    ForwardPass(l, output, h_n, c_n, saved).run();
  }
  return {output, saved};
}

}  // namespace

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> layer(BIRNN_LAYER_PARAMETERS, bool train) {
  const at::AutoDispatchBelowADInplaceOrView below;  // the products are no business of autograd's
  LayerTensors l = check_layer(BIRNN_LAYER_ARGUMENTS);
  const c10::DeviceGuard device(input.device());
  const auto options = input.options().requires_grad(false);
  const Sizes& n = l.n;
  const at::Tensor h_n = at::empty({n.D, n.B, n.P}, options);
  const at::Tensor c_n = l.mode == LSTM ? at::empty({n.D, n.B, n.H}, options) : at::empty({0}, options);
  auto [output, saved] = run(l, train, h_n, c_n);
  return {output, h_n, c_n, saved};
}

std::tuple<at::Tensor, at::Tensor> layer_into(BIRNN_LAYER_PARAMETERS, bool train, const at::Tensor& h_n,
                                              const OptionalTensor& c_n, int64_t row) {
  const at::AutoDispatchBelowADInplaceOrView below;
  LayerTensors l = check_layer(BIRNN_LAYER_ARGUMENTS);
  check_into(l, h_n, c_n.value_or(at::Tensor()), row);
  const c10::DeviceGuard device(input.device());
  return run(l, train, h_n.narrow(0, row, l.n.D), c_n ? c_n->narrow(0, row, l.n.D) : at::Tensor());
}

}  // namespace cuda
}  // namespace birnn
