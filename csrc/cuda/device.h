// What all kernels share: which rows are at work, where their data lie, and the choice of an instantiation by dtype and mode.
// Not here: kernels.
#pragma once

#include <cuda/seam.h>

#include "gate_math.h"
#include "kernels.h"

#define BIRNN_NS cuda
#include "../cells/cells.h"

namespace birnn {
namespace cuda {

// What T is computed in.
template <class T>
using Wide = decltype(wide(T()));

BIRNN_DEVICE int64_t length_of(const int64_t* lengths, int64_t b, int64_t T) {
  return !lengths || lengths[b] > T ? T : lengths[b];
}

template <class T>
BIRNN_DEVICE const T* as(const void* p) {
  return static_cast<const T*>(p);
}
template <class T>
BIRNN_DEVICE T* as(void* p) {
  return static_cast<T*>(p);
}

template <class T>
BIRNN_DEVICE T read_or_zero(const void* p, int64_t i) {
  return p ? as<T>(p)[i] : Narrow<T>::of(Wide<T>(0));
}

// Time of the step before t in the forward pass, or -1 where t is the row's first.
BIRNN_DEVICE int64_t time_before(int dir, int64_t t, int64_t length) { return dir == 0 ? t - 1 : t + 1 < length ? t + 1 : -1; }
// Whether the row was at work in the step that the backward pass did before t.
BIRNN_DEVICE bool worked_before(int dir, int64_t t, int64_t length) {
  const int64_t last = dir == 0 ? t + 1 : t - 1;
  return last >= 0 && last < length;
}

// What one unit of one row reads in a step of the backward pass, apart from what comes from later steps. Nothing is done with it
// before it is needed, so that nobody waits for it while it is on its way.
template <class T, class Cell>
struct BackwardOperands {
  typedef Wide<T> A;
  T save[Cell::saved + 1], old[2], h_new, dy;

  BIRNN_METHOD void load(const BackwardChunk& a, int64_t t, int64_t b, int64_t unit, int64_t length) {
    constexpr int S = Cell::saved;
    const int64_t H = a.n.H, B = a.n.B, before = time_before(a.dir, t, length);
    for (int v = 0; v < S; ++v) save[v] = as<T>(a.saved)[((t * B + b) * S + v) * H + unit];
    if (Cell::reads_h) {
      const T* y = as<T>(a.y) + b * a.y_b + unit;
      old[0] = before >= 0 ? y[before * a.y_t] : read_or_zero<T>(a.h0, b * H + unit);
      h_new = y[t * a.y_t];
    }
    if (Cell::states == 2) {  // c' is saved last
      const int64_t c = ((before * B + b) * S + S - 1) * H + unit;
      old[1] = before >= 0 ? as<T>(a.saved)[c] : read_or_zero<T>(a.c0, b * H + unit);
    }
    dy = read_or_zero<T>(a.du ? nullptr : a.dy, t * a.dy_t + b * a.dy_b + unit);
  }

  // d, dc: gradients of the new states from later steps -> gate gradients, and what reaches the old states directly.
  BIRNN_METHOD void compute(A d, A dc, A* gates, A* ds) const {
    A saved[Cell::saved + 1], states[2] = {}, h = A(0);
    for (int v = 0; v < Cell::saved; ++v) saved[v] = wide(save[v]);
    if (Cell::reads_h) states[0] = wide(old[0]), h = wide(h_new);
    if (Cell::states == 2) states[1] = wide(old[1]);
    const A ds_new[2] = {d + wide(dy), dc};
    Cell::backward(saved, states, h, ds_new, gates, ds);
  }
};

// Gate gradients of the recurrent side: columns [first, first + gates).
template <class Cell>
constexpr int first_h_column = Cell::h_column(0);

// Zeros where a forward step finds its row at rest.
template <class T>
BIRNN_DEVICE void write_zeros(T* to, int64_t stride, int count) {
  for (int v = 0; to && v < count; ++v) to[v * stride] = Narrow<T>::of(Wide<T>(0));
}

template <class T>
BIRNN_DEVICE void add_bias(Wide<T>* to, const void* bias, int gates, int64_t H, int64_t unit) {
  for (int g = 0; bias && g < gates; ++g) to[g] += wide(as<T>(bias)[g * H + unit]);
}

// ---- host side: f is called with a value of the type asked for ----

template <class F>
void by_dtype(Dtype dtype, F&& f) {
  switch (dtype) {
    case Dtype::F32:
      return f(float());
    case Dtype::F64:
      return f(double());
    case Dtype::F16:
      return f(Half());
    case Dtype::BF16:
      return f(BFloat16());
  }
}

// The same but for double, for kernels that do not have it: then f is not called.
template <class F>
void by_short_dtype(Dtype dtype, F&& f) {
  if (dtype == Dtype::F32) f(float());
  if (dtype == Dtype::F16) f(Half());
  if (dtype == Dtype::BF16) f(BFloat16());
}

template <class F>
void by_cell(Mode mode, F&& f) {
  switch (mode) {
#define BIRNN_CASE(cell, mode) \
  case mode:                   \
    return f(cell());
    BIRNN_FOR_EACH_CELL(BIRNN_CASE)
#undef BIRNN_CASE
    default:
      return;
  }
}

}  // namespace cuda
}  // namespace birnn
