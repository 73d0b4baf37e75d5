// The ops on CPU tensors: allocates the results and the scratch memory, and runs one task per direction (and share of
// the rows). Not here: arithmetic. Inside a task there are raw pointers only.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "../cells/facts.h"
#include "../ops.h"
#include "dense.h"
#include "memory.h"
#include "pair.h"
#include "prepacked.h"
#include "table.h"

namespace birnn {

namespace {

int64_t time_stride(const at::Tensor& t, bool batch_first) { return t.stride(batch_first ? 1 : 0); }
int64_t batch_stride(const at::Tensor& t, bool batch_first) { return t.stride(batch_first ? 0 : 1); }

template <class S>
Forward<S> forward_args(const LayerTensors& l) {
  Forward<S> f = {};
  f.n = l.n;
  f.x = pointer<S>(l.input);
  f.x_t = time_stride(l.input, l.batch_first), f.x_b = batch_stride(l.input, l.batch_first);
  f.h0 = pointer<S>(l.h0), f.c0 = pointer<S>(l.c0);
  f.lengths = l.lengths.defined() && l.lengths.dim() == 1 ? pointer<int64_t>(l.lengths) : nullptr;
  for (int d = 0; d < l.n.D; ++d) {
    f.w[d] = {pointer<S>(l.w_ih[d]), pointer<S>(l.w_hh[d]), pointer<S>(l.b_ih[d]), pointer<S>(l.b_hh[d]),
              pointer<S>(l.w_hr[d])};
    f.packed[d] = panels_of<Wide<S>>(l.packed[d]);
  }
  return f;
}

// Runs the sweeps. With one task per direction each packs its weights itself, panel by panel; where several share them they
// are packed first, unless they came packed. `meet`: the directions write one array. `pack(d, memory)`, `sweep(task number, team,
// packed already, memory)`.
template <class T, class Pack, class Sweep>
void pack_and_sweep(const Plan& p, const Sizes& n, int64_t packed_size, T* const (&given)[2], bool parallel, bool meet,
                    Pack&& pack, Sweep&& sweep) {
  const bool packed = given[0] || p.splits > 1, beside = parallel && parallel_tasks() > 1;
  // Directions that come one after the other pack into the same place, which the second one finds in the cache.
  const int64_t places = given[0] ? 0 : packed || (beside && !p.turns) ? n.D : 1;
  const at::DataPtr memory = allocate(size_t(packed_size * places) * sizeof(T));
  const auto of = [&](int64_t d) { return given[0] ? given[d] : static_cast<T*>(memory.get()) + d % places * packed_size; };
  if (packed && !given[0]) run_tasks(n.D, parallel, [&](int64_t d) { pack(int(d), of(d)); });
  const int64_t tasks = int64_t(p.tasks.size()), together = p.turns ? 1 : tasks;
  for (int64_t first = 0; first < tasks; first += together) {
    run_teams(together, p.members, beside, meet && !p.turns,
              [&](int64_t i, const Team& team) { sweep(first + i, team, packed, of(p.tasks[first + i].dir)); });
  }
}

// Tasks of whole rows or, where `lengths` divides them, of episodes.
Plan plan_rows(const LayerTensors& l, int64_t threads, int64_t rows_of_a_task, int64_t element) {
  const int gates = cell_facts[l.mode].gates;
  const int64_t* lengths = pointer<int64_t>(l.lengths);
  if (lengths && l.lengths.dim() == 2) return plan_episodes(l.n, gates, lengths, threads, rows_of_a_task, element);
  return plan(l.n, gates, lengths, threads, rows_of_a_task, element);
}

// Scratch memory of all tasks, one after the other.
template <class T>
struct TaskScratch {
  std::vector<int64_t> starts{0};
  at::DataPtr memory;

  void add(int64_t size) { starts.push_back(starts.back() + (size + 63) / 64 * 64); }
  void allocate_all() { memory = allocate(size_t(starts.back()) * sizeof(T)); }
  T* of(int64_t task) const { return static_cast<T*>(memory.get()) + starts[task]; }
};

template <class S>
void run_forward(const LayerTensors& l, const Forward<S>& f) {
  typedef Wide<S> T;
  const Kernels<S>& kernels = table().kernels<S>();
  const ForwardKernel<S>& kernel = kernels.forward[l.mode];
  const int64_t l2 = l2_cache_bytes();
  const bool parallel = worth_threads(l.n, cell_facts[l.mode].gates);
  const Plan p = plan_rows(l, parallel ? parallel_tasks() : 1, 1, kernels.weight_bytes);
  TaskScratch<T> scratch;
  for (const Task& task : p.tasks) scratch.add(kernel.scratch_size(f, task, l2));
  scratch.allocate_all();
  pack_and_sweep<T>(
      p, l.n, (kernel.packed_size(l.n) + 63) / 64 * 64, f.packed, parallel, false,
      [&](int d, T* memory) { kernel.pack(f, d, memory); },
      [&](int64_t i, const Team& team, bool packed, T* memory) {
        kernel.run(f, p.tasks[i], team, packed, memory, scratch.of(i), l2);
      });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> run_layer(LayerTensors& l, bool train, const at::Tensor& h_n, const at::Tensor& c_n) {
  make_dense(l);
  const auto options = l.input.options().requires_grad(false);
  at::Tensor output = at::empty(output_shape(l), options);
  at::Tensor saved = train ? empty_reusable(saved_shape(l), l.input) : at::empty({0}, options);
  with_type(l.input.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    Forward<S> f = forward_args<S>(l);
    f.y = data<S>(output);
    f.y_t = time_stride(output, l.batch_first), f.y_b = batch_stride(output, l.batch_first);
    f.h_n = data<S>(h_n), f.c_n = c_n.defined() ? data<S>(c_n) : nullptr;
    f.saved = train ? data<S>(saved) : nullptr;
    run_forward(l, f);
  });
  return {output, saved};
}

namespace {

std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor> layer(BIRNN_LAYER_PARAMETERS, bool train) {
  LayerTensors l = check_layer(BIRNN_LAYER_ARGUMENTS);
  const Sizes& n = l.n;
  const auto options = input.options().requires_grad(false);
  at::Tensor h_n = at::empty({n.D, n.B, n.P}, options);
  at::Tensor c_n = at::empty(l.mode == LSTM ? std::vector<int64_t>{n.D, n.B, n.H} : std::vector<int64_t>{0}, options);
  auto [output, saved] = run_layer(l, train, h_n, c_n);
  return {output, h_n, c_n, saved};
}

std::tuple<at::Tensor, at::Tensor> layer_into(BIRNN_LAYER_PARAMETERS, bool train, const at::Tensor& h_n,
                                              const OptionalTensor& c_n, int64_t row) {
  LayerTensors l = check_layer(BIRNN_LAYER_ARGUMENTS);
  check_into(l, h_n, c_n.value_or(at::Tensor()), row);
  return run_layer(l, train, h_n.narrow(0, row, l.n.D), c_n ? c_n->narrow(0, row, l.n.D) : at::Tensor());
}

// Gradients of the weights of one direction: five tensors, without elements where there is no such weight or it is not
// wanted.
struct WeightGradients {
  at::Tensor w_ih, w_hh, b_ih, b_hh, w_hr;

  WeightGradients(const LayerTensors& l, int d, bool wanted) {
    const auto like = [&](const at::Tensor& w) {
      const auto options = l.input.options().requires_grad(false);
      // (Reused, since a training loop frees them before the next step, which would fault in every page anew.)
      return wanted && w.defined() ? empty_reusable(w.sizes(), l.input) : at::empty({0}, options);
    };
    w_ih = like(l.w_ih[d]), w_hh = like(l.w_hh[d]), b_ih = like(l.b_ih[d]), b_hh = like(l.b_hh[d]), w_hr = like(l.w_hr[d]);
  }
  int64_t size() const { return w_ih.numel() + w_hh.numel() + b_ih.numel() + b_hh.numel() + w_hr.numel(); }

  template <class T>
  Gradients<T> pointers() const {
    const auto at = [](const at::Tensor& t) { return t.numel() ? data<T>(t) : nullptr; };
    return {at(w_ih), at(w_hh), at(b_ih), at(b_hh), at(w_hr)};
  }
  // The same places in memory of one's own.
  template <class T>
  Gradients<T> pointers_into(T* memory) const {
    const auto next = [&](const at::Tensor& t) {
      T* p = t.numel() ? memory : nullptr;
      memory += t.numel();
      return p;
    };
    return {next(w_ih), next(w_hh), next(b_ih), next(b_hh), next(w_hr)};
  }
};

// total[i] += parts[0][i] + parts[1][i] + ..., always in this order; this is share `share` of `shares`. With `sums` there is nothing
// in `total` yet, and it becomes the sum of the parts, rounded once.
template <class S>
void add_parts(S* total, int64_t size, Wide<S>* parts, int64_t count, int64_t stride, bool sums, int64_t share,
               int64_t shares) {
  const int64_t begin = size * share / shares, n = size * (share + 1) / shares - begin;
  Wide<S>* sum = sums ? parts + begin : reinterpret_cast<Wide<S>*>(total) + begin;
  for (int64_t k = sums; k < count; ++k) table().kernels<Wide<S>>().add(sum, parts + k * stride + begin, n);
  if (sums) table().kernels<S>().convert(sum, total + begin, n);
}

// to[i] += from[i]. Not at::Tensor::add_, which would open a parallel region of torch's own, also in a forked process.
template <class S>
void add(S* to, const S* from, int64_t size) {
  const int64_t shares = size > 32768 ? parallel_tasks() : 1;
  run_tasks(shares, true, [&](int64_t k) {
    const int64_t begin = size * k / shares;
    table().kernels<S>().add(to + begin, from + begin, size * (k + 1) / shares - begin);
  });
}

template <class S>
void run_backward(const LayerTensors& l, const Backward<S>& q, const WeightGradients* gradients) {
  typedef Wide<S> T;
  const Kernels<S>& kernels = table().kernels<S>();
  const BackwardKernel<S>& kernel = kernels.backward[l.mode];
  const int64_t l2 = l2_cache_bytes();
  const bool parallel = worth_threads(l.n, cell_facts[l.mode].gates);
  // Every further task of a direction has weight gradients of its own: few rows are not worth that.
  const Plan p = plan_rows(l, parallel ? parallel_tasks() : 1, 4, kernels.weight_bytes);
  TaskScratch<T> scratch;
  for (const Task& task : p.tasks) scratch.add(kernel.scratch_size(q, task, {0, p.members}, l2));
  scratch.allocate_all();
  // The first task of a direction writes to the results, the others to parts that are added afterwards in a fixed order. Where
  // the results are halves and there is anything to add, all write to parts.
  const bool sums = sizeof(S) < sizeof(T) && (p.splits > 1 || !kernel.one_chunk(q, p.tasks[0], l2));
  const int64_t size = std::max(gradients[0].size(), gradients[1].size()), parts = p.splits - (sums ? 0 : 1);
  const at::DataPtr parts_memory = allocate(size_t(size * parts * l.n.D) * sizeof(T));
  const auto part = [&](int64_t d, int64_t k) { return static_cast<T*>(parts_memory.get()) + (d * parts + k) * size; };
  pack_and_sweep<T>(
      p, l.n, (kernel.packed_size(q) + 63) / 64 * 64, {}, parallel, q.dx[0] && q.dx[0] == q.dx[1],
      [&](int d, T* memory) { kernel.pack(q, d, memory); },
      [&](int64_t i, const Team& team, bool packed, T* memory) {
        const int64_t d = p.tasks[i].dir, k = i - d * p.splits;
        const bool direct = k == 0 && !sums;
        const Gradients<S> result = gradients[d].template pointers<S>();
        const Gradients<T> out =
            direct ? gradients[d].template pointers<T>() : gradients[d].template pointers_into<T>(part(d, sums ? k : k - 1));
        kernel.run(q, p.tasks[i], team, out, direct ? &result : nullptr, packed, memory, scratch.of(i), l2);
      });
  if (!parts || !q.want_weights) return;
  run_tasks(p.splits * l.n.D, parallel, [&](int64_t i) {
    const int64_t d = i / p.splits, k = i % p.splits;
    const WeightGradients& g = gradients[d];
    const Gradients<S> to = g.pointers<S>();
    const Gradients<T> from = g.pointers_into<T>(part(d, 0));
    const auto add = [&](S* total, const at::Tensor& like, T* first) {
      if (total) add_parts(total, like.numel(), first, parts, size, sums, k, p.splits);
    };
    add(to.w_ih, g.w_ih, from.w_ih), add(to.w_hh, g.w_hh, from.w_hh);
    add(to.b_ih, g.b_ih, from.b_ih), add(to.b_hh, g.b_hh, from.b_hh), add(to.w_hr, g.w_hr, from.w_hr);
  });
}

// What both backward ops are given, dense, and the gradients of the states.
struct BackwardTensors {
  at::Tensor dy, dh_n, dc_n, output, saved, dh0, dc0;

  BackwardTensors(LayerTensors& l, const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                  const OptionalTensor& grad_c_n, const at::Tensor& output_any_strides, const at::Tensor& saved_any_strides,
                  bool need_state)
      : dy(grad_output.value_or(at::Tensor())), dh_n(grad_h_n.value_or(at::Tensor())), dc_n(grad_c_n.value_or(at::Tensor())) {
    check_backward(l, dy, dh_n, dc_n, output_any_strides, saved_any_strides);
    make_dense(l);
    dy = feature_contiguous(dy), dh_n = contiguous(dh_n), dc_n = contiguous(dc_n);
    output = output_any_strides.contiguous(), saved = saved_any_strides.contiguous();  // copies under vmap only
    const Sizes& n = l.n;
    const auto options = l.input.options().requires_grad(false);
    using Shape = std::vector<int64_t>;
    dh0 = at::empty(need_state ? Shape{n.D, n.B, n.P} : Shape{0}, options);
    dc0 = at::empty(need_state && l.mode == LSTM ? Shape{n.D, n.B, n.H} : Shape{0}, options);
  }

  template <class S>
  Backward<S> arguments(const LayerTensors& l, bool need_state) const {
    Backward<S> q = {};
    q.f = forward_args<S>(l);
    q.f.y = const_cast<S*>(pointer<S>(output));  // read only
    q.f.y_t = time_stride(output, l.batch_first), q.f.y_b = batch_stride(output, l.batch_first);
    q.f.saved = const_cast<S*>(pointer<S>(saved));
    q.dy = pointer<S>(dy), q.dh_n = pointer<S>(dh_n), q.dc_n = pointer<S>(dc_n);
    q.every_c = dc_n.defined() && dc_n.dim() == 4;
    if (dy.defined()) q.dy_t = time_stride(dy, l.batch_first), q.dy_b = batch_stride(dy, l.batch_first);
    if (need_state) q.dh0 = data<S>(dh0), q.dc0 = data<S>(dc0);
    return q;
  }
};

using ThirteenTensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor,
                                   at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

ThirteenTensors layer_backward(const OptionalTensor& grad_output, const OptionalTensor& grad_h_n,
                               const OptionalTensor& grad_c_n, BIRNN_LAYER_PARAMETERS, const at::Tensor& output,
                               const at::Tensor& saved, bool need_input, bool need_state, bool need_weights) {
  LayerTensors l = check_layer(BIRNN_LAYER_ARGUMENTS);
  const BackwardTensors t(l, grad_output, grad_h_n, grad_c_n, output, saved, need_state);
  const Sizes& n = l.n;
  const auto options = input.options().requires_grad(false);
  const auto none = [&] { return at::empty({0}, options); };  // a new one each time: results must not share memory
  at::Tensor dx = need_input ? at::empty(l.input.sizes(), options) : none(), other;
  // Rows of unequal length cross at as many places in time, so the directions cannot meet in the middle. And a chunk is not worth
  // being cut in two.
  const bool meet = !l.lengths.defined() && n.T > 1 && n.T * n.B > most_rows_of_chunk;
  if (need_input && n.D == 2 && !meet) other = empty_reusable(l.input.sizes(), input);
  const WeightGradients dw[2] = {{l, 0, need_weights}, {l, 1, need_weights}};

  with_type(input.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    Backward<S> q = t.arguments<S>(l, need_state);
    if (need_input) {
      q.dx[0] = data<S>(dx), q.dx[1] = n.D == 1 ? nullptr : other.defined() ? data<S>(other) : q.dx[0];
      q.dx_t = time_stride(dx, batch_first), q.dx_b = batch_stride(dx, batch_first);
    }
    q.want_weights = need_weights;
    run_backward(l, q, dw);
    if (other.defined()) add(q.dx[0], q.dx[1], dx.numel());
  });
  return {dx,         t.dh0,      t.dc0,      dw[0].w_ih, dw[0].w_hh, dw[0].b_ih, dw[0].b_hh,
          dw[0].w_hr, dw[1].w_ih, dw[1].w_hh, dw[1].b_ih, dw[1].b_hh, dw[1].w_hr};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> layer_gates_backward(const OptionalTensor& grad_output,
                                                                    const OptionalTensor& grad_h_n,
                                                                    const OptionalTensor& grad_c_n, BIRNN_LAYER_PARAMETERS,
                                                                    const at::Tensor& output, const at::Tensor& saved) {
  LayerTensors l = check_layer(BIRNN_LAYER_ARGUMENTS);
  const BackwardTensors t(l, grad_output, grad_h_n, grad_c_n, output, saved, true);
  const WeightGradients none[2] = {{l, 0, false}, {l, 1, false}};
  const at::Tensor gates =
      at::empty({l.n.D, l.n.T, l.n.B, cell_facts[l.mode].columns, l.n.H}, input.options().requires_grad(false));
  with_type(input.scalar_type(), [&](auto zero) {
    using S = decltype(zero);
    Backward<S> q = t.arguments<S>(l, true);
    q.gates = data<S>(gates);
    run_backward(l, q, none);
  });
  return {gates, t.dh0, t.dc0};
}

}  // namespace

TORCH_LIBRARY_IMPL(birnn_ext, CPU, m) {
  m.impl("layer", &layer);
  m.impl("layer_into", &layer_into);
  m.impl("layer_backward", &layer_backward);
  m.impl("layer_gates_backward", &layer_gates_backward);
}

}  // namespace birnn
