// The stepwise kernels (G0): what happens to every unit of every row between two matrix products, one launch per step. They serve
// every shape and dtype.
//
//   forward    rec = h W_hh^T (product)  ->  forward_step: biases, cell, h, c, output, saved gates, in one pass
//   backward   backward_step: dg, carry, dc, in one pass  ->  rec = dg W_hh (product)
//
// A thread has one unit of one row, so that no barrier is needed. Not here: products, the order of steps (forward.cpp,
// backward.cpp), and the kernels that keep the weights on chip (block.cu).
#include "device.h"

namespace birnn {
namespace cuda {

namespace {

constexpr int threads = 256;

template <class Chunk>
struct Step {
  Chunk a;
  int64_t t;
};

struct Place {
  int64_t b, unit;
};

BIRNN_DEVICE Place place() {
  return {int64_t(blockIdx.x) * blockDim.y + threadIdx.y, int64_t(blockIdx.y) * blockDim.x + threadIdx.x};
}

// Threads of a block: 32 to 256 units side by side, and rows for the rest.
Grid grid(int64_t rows, int64_t units) {
  int y = 1;
  while (y < 8 && y < rows) y *= 2;
  const int x = threads / y;
  return {(rows + y - 1) / y, (units + x - 1) / x, x, y};
}

template <class T, class Cell>
BIRNN_KERNEL(threads)
forward_step_kernel(const Step<ForwardChunk> s) {
  typedef Wide<T> A;
  constexpr int G = Cell::gates, S = Cell::saved;
  const ForwardChunk& a = s.a;
  const Place p = place();
  const int64_t H = a.n.H, b = p.b, unit = p.unit;
  if (b >= a.n.B || unit >= H) return;
  T* y = a.u ? nullptr : as<T>(a.y) + s.t * a.y_t + b * a.y_b + unit;
  T* u = a.u ? as<T>(a.u) + b * H + unit : as<T>(a.h) + b * H + unit;
  T* saved = S && a.saved ? as<T>(a.saved) + (s.t * a.n.B + b) * S * H + unit : nullptr;

  if (s.t >= length_of(a.lengths, b, a.n.T)) {
    write_zeros(a.u ? u : y, 0, 1);
    write_zeros(saved, H, S);
    return;
  }
  A x[G], h[G], old[2], now[2], save[S + 1];
  const A* pre = as<A>(a.pre) + ((s.t - a.t_begin) * a.n.B + b) * G * H + unit;
  const A* rec = as<A>(a.rec) + b * G * H + unit;
  for (int g = 0; g < G; ++g) x[g] = pre[g * H], h[g] = rec[g * H];
  add_bias<T>(x, a.b_ih, G, H, unit);
  add_bias<T>(h, a.b_hh, G, H, unit);
  A* c = Cell::states == 2 ? as<A>(a.c) + b * H + unit : nullptr;
  if (Cell::reads_h) old[0] = wide(*u);
  if (c) old[1] = *c;
  Cell::forward(x, h, old, now, save);
  *u = Narrow<T>::of(now[0]);
  if (y) *y = Narrow<T>::of(now[0]);
  if (c) *c = now[1];
  for (int v = 0; saved && v < S; ++v) saved[v * H] = Narrow<T>::of(save[v]);
}

template <class T>
BIRNN_KERNEL(threads)
forward_project_kernel(const Step<ForwardChunk> s) {
  const ForwardChunk& a = s.a;
  const Place p = place();
  if (p.b >= a.n.B || p.unit >= a.n.P) return;
  T* y = as<T>(a.y) + s.t * a.y_t + p.b * a.y_b + p.unit;
  if (s.t >= length_of(a.lengths, p.b, a.n.T)) {
    *y = Narrow<T>::of(0);
    return;
  }
  const T value = Narrow<T>::of(as<Wide<T>>(a.projected)[p.b * a.n.P + p.unit]);
  as<T>(a.h)[p.b * a.n.P + p.unit] = value;
  *y = value;
}

// What reaches element (b, i) of the state from later steps: the carry, and `rec` where the row was at work in the step that
// was done last (elsewhere rec may hold anything).
template <class T>
BIRNN_DEVICE Wide<T> arriving(const BackwardChunk& a, int64_t t, int64_t length, int64_t i) {
  Wide<T> d = as<Wide<T>>(a.carry)[i];
  if (worked_before(a.dir, t, length)) d += as<Wide<T>>(a.rec)[i];
  return d;
}

template <class T>
BIRNN_KERNEL(threads)
backward_project_kernel(const Step<BackwardChunk> s) {
  typedef Wide<T> A;
  const BackwardChunk& a = s.a;
  const Place p = place();
  const int64_t P = a.n.P, i = p.b * P + p.unit;
  if (p.b >= a.n.B || p.unit >= P) return;
  const int64_t length = length_of(a.lengths, p.b, a.n.T);
  const bool works = s.t < length;
  const A d = arriving<T>(a, s.t, length, i);
  as<A>(a.carry)[i] = works ? A(0) : d;  // a projected h reaches its own later self only through W_hh
  A dq = 0;
  if (works) dq = d + (a.dy ? wide(as<T>(a.dy)[s.t * a.dy_t + p.b * a.dy_b + p.unit]) : A(0));
  as<T>(a.dq)[(s.t - a.t_begin) * a.n.B * P + i] = Narrow<T>::of(dq);
}

template <class T, class Cell>
BIRNN_KERNEL(threads)
backward_step_kernel(const Step<BackwardChunk> s) {
  typedef Wide<T> A;
  const BackwardChunk& a = s.a;
  const Place p = place();
  const int64_t H = a.n.H, B = a.n.B, b = p.b, unit = p.unit, i = b * H + unit;
  if (b >= B || unit >= H) return;
  const int64_t length = length_of(a.lengths, b, a.n.T), t = s.t;
  T* dg = as<T>(a.dg) + ((t - a.t_begin) * B + b) * Cell::columns * H + unit;
  A d = a.du ? as<A>(a.du)[i] : arriving<T>(a, t, length, i);
  if (t >= length) {
    write_zeros(dg, H, Cell::columns);
    if (!a.du) as<A>(a.carry)[i] = d;
    return;
  }
  A out[Cell::columns], ds[2], dc = Cell::states == 2 ? as<A>(a.dc)[i] : A(0);
  BackwardOperands<T, Cell> operands;
  operands.load(a, t, b, unit, length);
  operands.compute(d, dc, out, ds);
  for (int k = 0; k < Cell::columns; ++k) dg[k * H] = Narrow<T>::of(out[k]);
  if (!a.du) as<A>(a.carry)[i] = ds[0];
  if (Cell::states == 2) as<A>(a.dc)[i] = ds[1];
}

}  // namespace

void forward_step(const ForwardChunk& a, int64_t t, const Launch& l) {
  by_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      const Step<ForwardChunk> s = {a, t};
      launch(&forward_step_kernel<decltype(zero), decltype(cell)>, grid(a.n.B, a.n.H), 0, l.stream, s, "layer, forward step");
    });
  });
}

void forward_project(const ForwardChunk& a, int64_t t, const Launch& l) {
  by_dtype(l.dtype, [&](auto zero) {
    const Step<ForwardChunk> s = {a, t};
    launch(&forward_project_kernel<decltype(zero)>, grid(a.n.B, a.n.P), 0, l.stream, s, "layer, projection");
  });
}

void backward_project(const BackwardChunk& a, int64_t t, const Launch& l) {
  by_dtype(l.dtype, [&](auto zero) {
    const Step<BackwardChunk> s = {a, t};
    launch(&backward_project_kernel<decltype(zero)>, grid(a.n.B, a.n.P), 0, l.stream, s, "layer_backward, projection");
  });
}

void backward_step(const BackwardChunk& a, int64_t t, const Launch& l) {
  by_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      const Step<BackwardChunk> s = {a, t};
      launch(&backward_step_kernel<decltype(zero), decltype(cell)>, grid(a.n.B, a.n.H), 0, l.stream, s,
             "layer_backward, backward step");
    });
  });
}

}  // namespace cuda
}  // namespace birnn
