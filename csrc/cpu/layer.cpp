// The ops on CPU tensors: allocates the results and the scratch memory, and runs one task per direction (and share of
// the rows). Not here: arithmetic. Inside a task there are raw pointers only.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>

#include "../cells/facts.h"
#include "../ops.h"
#include "memory.h"
#include "pair.h"
#include "prepacked.h"
#include "table.h"

namespace birnn {

namespace {

template <class T>
const T* pointer(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr<T>() : nullptr;
}

template <class T>
void copy_strided(const at::Tensor& from, T* to) {
  const T* data = from.const_data_ptr<T>();
  if (from.dim() > 3) {
    for (int64_t i = 0; i < from.size(0); ++i) copy_strided(from.select(0, i), to + from.numel() / from.size(0) * i);
    return;
  }
  int64_t size[3] = {1, 1, 1}, stride[3] = {0, 0, 0};
  for (int64_t i = 0; i < from.dim(); ++i) {
    size[3 - from.dim() + i] = from.size(i), stride[3 - from.dim() + i] = from.stride(i);
  }
  const int64_t shares = from.numel() > 32768 ? parallel_tasks() : 1;
  run_tasks(shares, true, [&](int64_t k) {
    for (int64_t row = size[0] * size[1] * k / shares; row < size[0] * size[1] * (k + 1) / shares; ++row) {
      const T* line = data + row / size[1] * stride[0] + row % size[1] * stride[1];
      for (int64_t j = 0; j < size[2]; ++j) to[row * size[2] + j] = line[j * stride[2]];
    }
  });
}

// t, or a copy of it without gaps. Not at::Tensor::contiguous, for the reason given at `add` below.
at::Tensor contiguous(const at::Tensor& t) {
  if (!t.defined() || t.is_contiguous()) return t;
  at::Tensor copy = at::empty(t.sizes(), t.options().requires_grad(false));
  switch (t.scalar_type()) {
    case at::kFloat:
      copy_strided(t, copy.mutable_data_ptr<float>());
      break;
    case at::kDouble:
      copy_strided(t, copy.mutable_data_ptr<double>());
      break;
    default:
      copy_strided(t, copy.mutable_data_ptr<int64_t>());
  }
  return copy;
}

// Features side by side; time and batch may have any stride.
at::Tensor feature_contiguous(const at::Tensor& t) {
  return !t.defined() || t.stride(2) == 1 || t.size(2) <= 1 ? t : contiguous(t);
}

int64_t time_stride(const at::Tensor& t, bool batch_first) { return t.stride(batch_first ? 1 : 0); }
int64_t batch_stride(const at::Tensor& t, bool batch_first) { return t.stride(batch_first ? 0 : 1); }

void make_dense(LayerTensors& l) {
  TORCH_CHECK(l.input.scalar_type() == at::kFloat || l.input.scalar_type() == at::kDouble,
              "input: the CPU kernels are for dtypes Float and Double, got ", l.input.scalar_type());
  l.input = feature_contiguous(l.input);
  l.h0 = contiguous(l.h0), l.c0 = contiguous(l.c0), l.lengths = contiguous(l.lengths);
  for (int d = 0; d < l.n.D; ++d) {
    for (at::Tensor* w : {&l.w_ih[d], &l.w_hh[d], &l.b_ih[d], &l.b_hh[d], &l.w_hr[d]}) *w = contiguous(*w);
  }
  if (!l.lengths.defined()) return;
  const int64_t* lengths = l.lengths.const_data_ptr<int64_t>();
  if (l.lengths.dim() == 2) {  // numbers of episodes: any, but once a row has ended it has ended
    for (int64_t i = 0; i < l.n.B * l.n.T; ++i) {
      TORCH_CHECK_VALUE(lengths[i] >= 0 && (i % l.n.T == 0 || lengths[i - 1] > 0 || lengths[i] == 0),
                        "lengths: expected the numbers of episodes, from 1 on, then zeros, got ", lengths[i], " at row ",
                        i / l.n.T, ", step ", i % l.n.T);
    }
    return;
  }
  for (int64_t b = 0; b < l.n.B; ++b) {
    TORCH_CHECK_VALUE(lengths[b] >= 0 && lengths[b] <= l.n.T, "lengths: expected values from 0 to T = ", l.n.T, ", got ",
                      lengths[b], " at position ", b);
  }
}

template <class T>
Forward<T> forward_args(const LayerTensors& l) {
  Forward<T> f = {};
  f.n = l.n;
  f.x = pointer<T>(l.input);
  f.x_t = time_stride(l.input, l.batch_first), f.x_b = batch_stride(l.input, l.batch_first);
  f.h0 = pointer<T>(l.h0), f.c0 = pointer<T>(l.c0);
  f.lengths = l.lengths.defined() && l.lengths.dim() == 1 ? pointer<int64_t>(l.lengths) : nullptr;
  for (int d = 0; d < l.n.D; ++d) {
    f.w[d] = {pointer<T>(l.w_ih[d]), pointer<T>(l.w_hh[d]), pointer<T>(l.b_ih[d]), pointer<T>(l.b_hh[d]),
              pointer<T>(l.w_hr[d])};
    f.packed[d] = panels_of<T>(l.packed[d]);
  }
  return f;
}

// Runs the sweeps. With one task per direction each packs its weights itself, panel by panel; where several share them they
// are packed first, unless they came packed. `pack(d, memory)`, `sweep(task number, team, packed already, memory)`.
template <class T, class Pack, class Sweep>
void pack_and_sweep(const Plan& p, const Sizes& n, int64_t packed_size, T* const (&given)[2], bool parallel, Pack&& pack,
                    Sweep&& sweep) {
  const bool packed = given[0] || p.splits > 1;
  const at::DataPtr memory = allocate(given[0] ? 0 : size_t(packed_size * n.D) * sizeof(T));
  const auto of = [&](int64_t d) { return given[0] ? given[d] : static_cast<T*>(memory.get()) + d * packed_size; };
  if (packed && !given[0]) run_tasks(n.D, parallel, [&](int64_t d) { pack(int(d), of(d)); });
  const int64_t tasks = int64_t(p.tasks.size()), together = p.turns ? 1 : tasks;
  for (int64_t first = 0; first < tasks; first += together) {
    run_teams(together, p.members, parallel,
              [&](int64_t i, const Team& team) { sweep(first + i, team, packed, of(p.tasks[first + i].dir)); });
  }
}

// Tasks of whole rows or, where `lengths` divides them, of episodes.
Plan plan_rows(const LayerTensors& l, int64_t threads, int64_t rows_of_a_task) {
  const int64_t element = l.input.element_size();
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

template <class T>
void run_forward(const LayerTensors& l, const Forward<T>& f) {
  const ForwardKernel<T>& kernel = table().kernels<T>().forward[l.mode];
  const int64_t l2 = l2_cache_bytes();
  const bool parallel = worth_threads(l.n, cell_facts[l.mode].gates);
  const Plan p = plan_rows(l, parallel ? parallel_tasks() : 1, 1);
  TaskScratch<T> scratch;
  for (const Task& task : p.tasks) scratch.add(kernel.scratch_size(f, task, l2));
  scratch.allocate_all();
  pack_and_sweep<T>(
      p, l.n, (kernel.packed_size(l.n) + 63) / 64 * 64, f.packed, parallel,
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
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    Forward<T> f = forward_args<T>(l);
    f.y = output.mutable_data_ptr<T>();
    f.y_t = time_stride(output, l.batch_first), f.y_b = batch_stride(output, l.batch_first);
    f.h_n = h_n.mutable_data_ptr<T>(), f.c_n = c_n.defined() ? c_n.mutable_data_ptr<T>() : nullptr;
    f.saved = train ? saved.mutable_data_ptr<T>() : nullptr;
    run_forward(l, f);
  };
  l.input.scalar_type() == at::kFloat ? run(float()) : run(double());
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
    const auto at = [](const at::Tensor& t) { return t.numel() ? t.mutable_data_ptr<T>() : nullptr; };
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

// total[i] += parts[0][i] + parts[1][i] + ..., always in this order; this is share `share` of `shares`.
template <class T>
void add_parts(T* total, int64_t size, const T* parts, int64_t count, int64_t stride, int64_t share, int64_t shares) {
  if (!total) return;
  for (int64_t k = 0; k < count; ++k) {
    for (int64_t i = size * share / shares; i < size * (share + 1) / shares; ++i) total[i] += parts[k * stride + i];
  }
}

// to[i] += from[i]. Not at::Tensor::add_, which would open a parallel region of torch's own, also in a forked process.
template <class T>
void add(T* to, const T* from, int64_t size) {
  const int64_t shares = size > 32768 ? parallel_tasks() : 1;
  run_tasks(shares, true, [&](int64_t k) {
    for (int64_t i = size * k / shares; i < size * (k + 1) / shares; ++i) to[i] += from[i];
  });
}

template <class T>
void run_backward(const LayerTensors& l, const Backward<T>& q, const WeightGradients* gradients) {
  const BackwardKernel<T>& kernel = table().kernels<T>().backward[l.mode];
  const int64_t l2 = l2_cache_bytes();
  const bool parallel = worth_threads(l.n, cell_facts[l.mode].gates);
  // Every further task of a direction has weight gradients of its own: few rows are not worth that.
  const Plan p = plan_rows(l, parallel ? parallel_tasks() : 1, 4);
  TaskScratch<T> scratch;
  for (const Task& task : p.tasks) scratch.add(kernel.scratch_size(q, task, {0, p.members}, l2));
  scratch.allocate_all();
  // The first task of a direction writes to the results, the others to parts that are added afterwards in a fixed
  // order.
  const int64_t size = std::max(gradients[0].size(), gradients[1].size()), parts = p.splits - 1;
  const at::DataPtr parts_memory = allocate(size_t(size * parts * l.n.D) * sizeof(T));
  const auto part = [&](int64_t d, int64_t k) { return static_cast<T*>(parts_memory.get()) + (d * parts + k) * size; };
  pack_and_sweep<T>(
      p, l.n, (kernel.packed_size(q) + 63) / 64 * 64, {}, parallel, [&](int d, T* memory) { kernel.pack(q, d, memory); },
      [&](int64_t i, const Team& team, bool packed, T* memory) {
        const int64_t d = p.tasks[i].dir, k = i - d * p.splits;
        const Gradients<T> out =
            k == 0 ? gradients[d].template pointers<T>() : gradients[d].template pointers_into<T>(part(d, k - 1));
        kernel.run(q, p.tasks[i], team, out, packed, memory, scratch.of(i), l2);
      });
  if (!parts || !q.want_weights) return;
  run_tasks(p.splits, parallel, [&](int64_t k) {
    for (int64_t d = 0; d < l.n.D; ++d) {
      const WeightGradients& g = gradients[d];
      const Gradients<T> to = g.pointers<T>(), from = g.pointers_into<T>(part(d, 0));
      add_parts<T>(to.w_ih, g.w_ih.numel(), from.w_ih, parts, size, k, p.splits);
      add_parts<T>(to.w_hh, g.w_hh.numel(), from.w_hh, parts, size, k, p.splits);
      add_parts<T>(to.b_ih, g.b_ih.numel(), from.b_ih, parts, size, k, p.splits);
      add_parts<T>(to.b_hh, g.b_hh.numel(), from.b_hh, parts, size, k, p.splits);
      add_parts<T>(to.w_hr, g.w_hr.numel(), from.w_hr, parts, size, k, p.splits);
    }
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

  template <class T>
  Backward<T> arguments(const LayerTensors& l, bool need_state) const {
    Backward<T> q = {};
    q.f = forward_args<T>(l);
    q.f.y = const_cast<T*>(output.const_data_ptr<T>());  // read only
    q.f.y_t = time_stride(output, l.batch_first), q.f.y_b = batch_stride(output, l.batch_first);
    q.f.saved = const_cast<T*>(saved.const_data_ptr<T>());
    q.dy = pointer<T>(dy), q.dh_n = pointer<T>(dh_n), q.dc_n = pointer<T>(dc_n);
    q.every_c = dc_n.defined() && dc_n.dim() == 4;
    if (dy.defined()) q.dy_t = time_stride(dy, l.batch_first), q.dy_b = batch_stride(dy, l.batch_first);
    if (need_state) q.dh0 = dh0.mutable_data_ptr<T>(), q.dc0 = dc0.mutable_data_ptr<T>();
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
  at::Tensor dx[2] = {none(), none()};
  for (int d = 0; need_input && d < n.D; ++d)
    dx[d] = d ? empty_reusable(l.input.sizes(), input) : at::empty(l.input.sizes(), options);
  const WeightGradients dw[2] = {{l, 0, need_weights}, {l, 1, need_weights}};

  const auto run = [&](auto zero) {
    using T = decltype(zero);
    Backward<T> q = t.arguments<T>(l, need_state);
    for (int d = 0; need_input && d < n.D; ++d) q.dx[d] = dx[d].template mutable_data_ptr<T>();
    if (need_input) q.dx_t = time_stride(dx[0], batch_first), q.dx_b = batch_stride(dx[0], batch_first);
    q.want_weights = need_weights;
    run_backward(l, q, dw);
    if (need_input && n.D == 2) add(q.dx[0], q.dx[1], dx[0].numel());
  };
  input.scalar_type() == at::kFloat ? run(float()) : run(double());
  return {dx[0],      t.dh0,      t.dc0,      dw[0].w_ih, dw[0].w_hh, dw[0].b_ih, dw[0].b_hh,
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
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    Backward<T> q = t.arguments<T>(l, true);
    q.gates = gates.mutable_data_ptr<T>();
    run_backward(l, q, none);
  };
  input.scalar_type() == at::kFloat ? run(float()) : run(double());
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
