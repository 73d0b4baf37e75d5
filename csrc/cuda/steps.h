// The steps of the kernels of many blocks (G2, G3), forward and backward, over an exchange between the blocks (a Link).
//
//   block = (group of rows of the batch, part of the units); groups have nothing to do with each other. A block holds the
//   recurrent weights of its units in registers and shared memory through all steps of a chunk.
//
//   a step     publish own values -> receive everybody's -> product, barrier -> cell
//   forward    the state before the step [rows][H]              times W_hh            -> gates of own units
//   backward   gate gradients of the step [rows][gates][H]      times W_hh transposed -> carries of own units
//
// But for the product (chip.h), a thread is (row r, unit u), with h (or carry) and c in registers.
// Not here: exchanges (exchange.h, push.h), projections, float64, the choice of a plan (plan.h).
#pragma once

#include "chip.h"

namespace birnn {
namespace cuda {

template <class T>
BIRNN_DEVICE void write_nan(T* to, int64_t stride, int count) {
  for (int v = 0; to && v < count; ++v) to[v * stride] = Narrow<T>::of(NAN);
}

template <class Link, class Cell>
BIRNN_DEVICE void forward_steps(const ForwardChunk& a) {
  typedef typename Link::Value T;
  constexpr int G = Cell::gates, S = Cell::saved;
  const Plan& p = a.plan;
  BIRNN_SHARED(unsigned char, memory);
  const Here me(a.n, p, a.lengths);
  Chip<T, G, Link::spare> chip(p, reinterpret_cast<T*>(memory + Link::shared_bytes));
  const int H = me.H;
  const int64_t B = a.n.B;
  chip.load(p, me, [&](int, int g, int unit, int k) {
    return unit < H && k < H ? as<T>(a.w_hh)[(int64_t(g) * H + unit) * H + k] : Narrow<T>::of(0.f);
  });
  Link link(a.exchange, p, me, a.n, rounded_up(H, Link::together), memory, chip.vector, p.stride);
  // Biases stay in shared memory: registers are for weights.
  float *const b_ih = chip.end(p), *const b_hh = b_ih + G * p.units;
  for (int g = 0; me.r == 0 && me.unit < H && g < G; ++g) {
    b_ih[g * p.units + me.u] = wide(read_or_zero<T>(a.b_ih, int64_t(g) * H + me.unit));
    b_hh[g * p.units + me.u] = wide(read_or_zero<T>(a.b_hh, int64_t(g) * H + me.unit));
  }
  float old[2] = {}, now[2] = {}, save[S + 1];
  if (me.mine) {
    old[0] = wide(as<T>(a.h)[int64_t(me.b) * H + me.unit]);
    if (Cell::states == 2) old[1] = as<float>(a.c)[int64_t(me.b) * H + me.unit];
  }
  bool lost = link.begin();

  // Where this thread's results go, computed when they are there.
  const auto y = [&](int t) { return as<T>(a.y) + t * a.y_t + anew(me.b) * a.y_b + me.unit; };
  const auto saved = [&](int t) { return S && a.saved ? as<T>(a.saved) + (t * B + anew(me.b)) * S * H + me.unit : nullptr; };
  const int steps = int(a.t_end - a.t_begin);
  for (int n = 0; n < steps; ++n) {
    const int t = a.dir == 0 ? int(a.t_begin) + n : int(a.t_end) - 1 - n;
    const bool works = me.mine && t < me.length;
    if (me.mine && !works) {
      write_zeros(y(t), 0, 1);
      write_zeros(saved(t), H, S);
    }
    if (t >= me.longest) continue;  // nobody in this group is at work
    link.next(uint32_t(a.dir == 0 ? t : int(a.n.T) - 1 - t) + 1);
    if (!lost) link.publish(0, me.unit, Narrow<T>::of(old[0]));
    float x[G];
    const float* pre = as<float>(a.pre) + ((t - int(a.t_begin)) * B + anew(me.b)) * G * H + me.unit;
    for (int g = 0; g < G; ++g) x[g] = works ? pre[g * H] : 0;  // on its way while this block waits for the others
    if (!lost) {
      const bool in_vain = !link.receive(0);
      chip.multiply(p, me, link.vector(), 0);
      lost = block_any(in_vain);
    }
    if (lost) {
      old[0] = old[1] = NAN;
      if (!works) continue;
      write_nan(y(t), 0, 1);
      write_nan(saved(t), H, S);
      continue;
    }
    if (!works) continue;
    float h[G];
    const int u = anew(me.u);
    for (int g = 0; g < G; ++g) {
      x[g] += b_ih[g * p.units + u];
      h[g] = chip.sum(p, me, g) + b_hh[g * p.units + u];
    }
    Cell::forward(x, h, old, now, save);
    const T rounded = Narrow<T>::of(now[0]);
    old[0] = wide(rounded), old[1] = now[1];
    *y(t) = rounded;
    T* to = saved(t);
    for (int v = 0; to && v < S; ++v) to[v * H] = Narrow<T>::of(save[v]);
  }
  link.end(lost);
  if (!me.mine) return;
  const int64_t i = int64_t(anew(me.b)) * H + me.unit;
  as<T>(a.h)[i] = Narrow<T>::of(old[0]);
  if (Cell::states == 2) as<float>(a.c)[i] = old[1];
}

template <class Link, class Cell>
BIRNN_DEVICE void backward_steps(const BackwardChunk& a) {
  typedef typename Link::Value T;
  constexpr int G = Cell::gates, C = Cell::columns, first = first_h_column<Cell>;
  const Plan& p = a.plan;
  BIRNN_SHARED(unsigned char, memory);
  const Here me(a.n, p, a.lengths);
  Chip<T, 1, Link::spare> chip(p, reinterpret_cast<T*>(memory + Link::shared_bytes));
  // Gates go together, or each in a part of its own.
  const int H = me.H, He = rounded_up(H, Link::together), together = G / p.parts;
  const int64_t B = a.n.B;
  chip.load(p, me, [&](int part, int, int unit, int k) {
    const int g = part * together + k / He, from = k % He;
    return unit < H && k < together * He && from < H ? as<T>(a.w_hh)[(int64_t(g) * H + from) * H + unit] : Narrow<T>::of(0.f);
  });
  Link link(a.exchange, p, me, a.n, together * He, memory, chip.vector, p.stride);
  float carry = 0, dc = 0;
  if (me.mine) {
    carry = as<float>(a.carry)[int64_t(me.b) * H + me.unit];
    if (Cell::states == 2) dc = as<float>(a.dc)[int64_t(me.b) * H + me.unit];
  }
  const int steps = int(a.t_end - a.t_begin);
  const auto time = [&](int n) { return a.dir == 0 ? int(a.t_end) - 1 - n : int(a.t_begin) + n; };
  const auto gradients = [&](int t) { return as<T>(a.dg) + ((t - int(a.t_begin)) * B + anew(me.b)) * C * H + me.unit; };
  BackwardOperands<T, Cell> operands;
  if (me.mine && time(0) < me.length) operands.load(a, time(0), me.b, me.unit, me.length);
  bool lost = link.begin();

  for (int n = 0; n < steps; ++n) {
    const int t = time(n);
    const bool works = me.mine && t < me.length, busy = t < me.longest;
    if (busy) link.next(uint32_t(a.dir == 0 ? int(a.n.T) - 1 - t : t) + 1);
    float gates[C] = {}, ds[2] = {};
    if (works) {
      operands.compute(carry, dc, gates, ds);
      dc = ds[1];
    }
    T* dg = gradients(t);
    for (int k = 0; k < C; ++k) {
      const T rounded = Narrow<T>::of(gates[k]);
      if (busy && !lost && k >= first && k < first + G) {
        const int g = k - first;
        link.publish(g / together, g % together * He + me.unit, rounded);
      }
      if (me.mine) dg[k * H] = rounded;
    }
    // The next step's operands travel while this step's values do.
    if (n + 1 < steps && me.mine && time(n + 1) < me.length) operands.load(a, time(n + 1), anew(me.b), me.unit, me.length);
    if (!busy) continue;  // nobody in this group is at work
    for (int part = 0; part < p.parts && !lost; ++part) {
      const bool in_vain = !link.receive(part);
      chip.multiply(p, me, link.vector(), part);
      lost = block_any(in_vain);
    }
    if (lost) {
      carry = dc = NAN;
      if (works) write_nan(gradients(t), H, C);
      continue;
    }
    if (works) carry = ds[0] + chip.sum(p, me, 0);
  }
  link.end(lost);
  if (!me.mine) return;
  const int64_t i = int64_t(anew(me.b)) * H + me.unit;
  as<float>(a.carry)[i] = carry;
  if (Cell::states == 2) as<float>(a.dc)[i] = dc;
}

}  // namespace cuda
}  // namespace birnn
