// The steps of the kernels of many blocks (G2, G3), forward and backward, over an exchange between the blocks (a Link).
//
//   block = (group of rows of the batch, part of the units); groups have nothing to do with each other. A block holds the
//   recurrent weights of its units in shared memory through all steps of a chunk.
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
  Chip<T, G> chip(p, reinterpret_cast<T*>(memory + Link::shared_bytes));
  const int H = me.H;
  const int64_t B = a.n.B, i = int64_t(me.b) * H + me.unit;
  Link link(a.exchange, p, me, a.n, rounded_up(H, Link::together), memory, chip.vector, chip.stride(p));
  chip.load(p, me, [&](int, int g, int unit, int k) {
    return unit < H && k < H ? as<T>(a.w_hh)[(int64_t(g) * H + unit) * H + k] : Narrow<T>::of(0.f);
  });
  float b_ih[G] = {}, b_hh[G] = {}, old[2] = {}, now[2] = {}, save[S + 1];
  if (me.mine) {
    add_bias<T>(b_ih, a.b_ih, G, H, me.unit);
    add_bias<T>(b_hh, a.b_hh, G, H, me.unit);
    old[0] = wide(as<T>(a.h)[i]);
    if (Cell::states == 2) old[1] = as<float>(a.c)[i];
  }
  bool lost = link.begin();

  const int64_t steps = a.t_end - a.t_begin;
  for (int64_t n = 0; n < steps; ++n) {
    const int64_t t = a.dir == 0 ? a.t_begin + n : a.t_end - 1 - n, row = t * B + me.b;
    T* y = me.mine ? as<T>(a.y) + t * a.y_t + me.b * a.y_b + me.unit : nullptr;
    T* saved = S && me.mine && a.saved ? as<T>(a.saved) + row * S * H + me.unit : nullptr;
    const bool works = me.mine && t < me.length;
    if (!works) {
      write_zeros(y, 0, 1);
      write_zeros(saved, H, S);
    }
    if (t >= me.longest) continue;  // nobody in this group is at work
    const uint32_t tag = uint32_t(a.dir == 0 ? t : a.n.T - 1 - t) + 1;
    link.next(tag);
    if (!lost) link.publish(0, me.unit, Narrow<T>::of(old[0]));
    float x[G];
    const float* pre = as<float>(a.pre) + (row - a.t_begin * B) * G * H + me.unit;
    for (int g = 0; g < G; ++g) x[g] = works ? pre[g * H] + b_ih[g] : 0;  // before the wait, which hides theirs
    if (!lost) {
      const bool in_vain = !link.receive(0);
      chip.multiply(p, me, link.vector(), 0);
      lost = block_any(in_vain);
    }
    if (lost) {
      old[0] = old[1] = NAN;
      if (!works) continue;
      write_nan(y, 0, 1);
      write_nan(saved, H, S);
      continue;
    }
    if (!works) continue;
    float h[G];
    for (int g = 0; g < G; ++g) h[g] = chip.sum(p, me, g) + b_hh[g];
    Cell::forward(x, h, old, now, save);
    const T rounded = Narrow<T>::of(now[0]);
    old[0] = wide(rounded), old[1] = now[1];
    *y = rounded;
    for (int v = 0; saved && v < S; ++v) saved[v * H] = Narrow<T>::of(save[v]);
  }
  link.end(lost);
  if (!me.mine) return;
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
  Chip<T, 1> chip(p, reinterpret_cast<T*>(memory + Link::shared_bytes));
  // Gates go together, or each in a part of its own.
  const int H = me.H, He = rounded_up(H, Link::together), together = G / p.parts;
  const int64_t B = a.n.B, i = int64_t(me.b) * H + me.unit, steps = a.t_end - a.t_begin;
  Link link(a.exchange, p, me, a.n, together * He, memory, chip.vector, chip.stride(p));
  chip.load(p, me, [&](int part, int, int unit, int k) {
    const int g = part * together + k / He, from = k % He;
    return unit < H && k < together * He && from < H ? as<T>(a.w_hh)[(int64_t(g) * H + from) * H + unit] : Narrow<T>::of(0.f);
  });
  float carry = 0, dc = 0;
  if (me.mine) {
    carry = as<float>(a.carry)[i];
    if (Cell::states == 2) dc = as<float>(a.dc)[i];
  }
  const auto time = [&](int64_t n) { return a.dir == 0 ? a.t_end - 1 - n : a.t_begin + n; };
  BackwardOperands<T, Cell> operands;
  if (me.mine && time(0) < me.length) operands.load(a, time(0), me.b, me.unit, me.length);
  bool lost = link.begin();

  for (int64_t n = 0; n < steps; ++n) {
    const int64_t t = time(n);
    const bool works = me.mine && t < me.length, busy = t < me.longest;
    const uint32_t tag = uint32_t(a.dir == 0 ? a.n.T - 1 - t : t) + 1;
    if (busy) link.next(tag);
    float gates[C] = {}, ds[2] = {};
    if (works) {
      operands.compute(carry, dc, gates, ds);
      dc = ds[1];
    }
    T* dg = me.mine ? as<T>(a.dg) + ((t - a.t_begin) * B + me.b) * C * H + me.unit : nullptr;
    for (int k = 0; k < C; ++k) {
      const T rounded = Narrow<T>::of(gates[k]);
      if (busy && !lost && k >= first && k < first + G) {
        const int g = k - first;
        link.publish(g / together, g % together * He + me.unit, rounded);
      }
      if (me.mine) dg[k * H] = rounded;
    }
    // The next step's operands travel while this step's values do.
    if (n + 1 < steps && me.mine && time(n + 1) < me.length) operands.load(a, time(n + 1), me.b, me.unit, me.length);
    if (!busy) continue;  // nobody in this group is at work
    for (int part = 0; part < p.parts && !lost; ++part) {
      const bool in_vain = !link.receive(part);
      chip.multiply(p, me, link.vector(), part);
      lost = block_any(in_vain);
    }
    if (lost) {
      carry = dc = NAN;
      if (works) write_nan(dg, H, C);
      continue;
    }
    if (works) carry = ds[0] + chip.sum(p, me, 0);
  }
  link.end(lost);
  if (!me.mine) return;
  as<float>(a.carry)[i] = carry;
  if (Cell::states == 2) as<float>(a.dc)[i] = dc;
}

}  // namespace cuda
}  // namespace birnn
