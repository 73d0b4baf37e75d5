// The backward sweep of one direction over a set of rows, from its last step to its first:
//
//   for each chunk of steps, last first
//     for each step, last first
//       the cell's backward on  carry + dy  ->  gate gradients dg [rows, columns * H], and what flows to h_{s-1} directly
//       carry += dg W_hh                                                             inherently sequential
//     dx = dg W_ih, or += (added_below)      dW_ih += dg^T x    dW_hh += dg^T h_{s-1}    db += column sums of dg
//                                                                                    products over the whole chunk
//
// carry [rows, P] is the gradient of h_{s-1} that comes from later steps; a row's carry starts as its gradient of h_n.
// With a projection, dq = carry + dy is first taken through W_hr, and dW_hr += dq^T u. Not here: threads, allocation, torch.
#pragma once

#include "weight_gradients.h"

namespace birnn {
namespace BIRNN_NS {

template <class S, class Cell>
struct BackwardSweep : BackwardData<S, Cell> {
  typedef BackwardData<S, Cell> Data;
  using Data::first_h_column;
  using Data::first_x_column;
  using Data::has_c;
  using Data::L;
  using typename Data::A;
  using typename Data::Out;
  using typename Data::Packed;
  using typename Data::Scratch;
  using typename Data::T;

  static void run(const Backward<S>& q, const Task& task, const Team& team, const Gradients<T>& sums,
                  const Gradients<S>* rounded, bool packed, T* packed_memory, T* scratch_memory, int64_t l2_bytes) {
    const Out out{sums, rounded};
    const Rows all(q.f.lengths, q.f.n.T, task);
    const Sizes& n = q.f.n;
    const int64_t target = Data::chunk_target(n, l2_bytes), batches = all.batches(), added = added_below(q, all, team);
    Arena<T> packed_arena{packed_memory}, scratch_arena{scratch_memory};
    Packed w(q, packed_arena);
    const Scratch m(q, all.batch(0), team, target, scratch_arena);
    w.ih.team = w.hh.team = w.hr.team = team;
    if (!packed) {
      w.begin(q, all.dir);
      const int64_t total = all.total(), products = batches == 1 ? all.steps() : 2;
      w.ih.expect(Data::one_chunk(all, target) && (added == 0 || added == n.T) ? 1 : 2, total);
      w.hh.expect(products, total), w.hr.expect(products, total);
    }
    if (team.rank == 0) zero(m.sums, Cell::columns * n.H);
    for (int64_t k = 0; k < batches; ++k) {
      if (k > 0) team.wait();  // before the next gradients of states take the place of the last ones
      sweep(q, all.batch(k), team, target, added, k > 0, out, w, m);
    }
    if (q.want_weights && team.rank == 0) out.visit([&](const auto& to) { WeightSums<S, Cell>::finish(q, all, to, m); });
  }

  // In the steps below this one dx is added to what the other direction has written, where both have one array: the direction that
  // comes first writes, the second one adds. If they run at the same time they meet in the middle:
  //
  //   time          0  1  2  3  4
  //   direction 0   +  +  w  w  w   <--      w: writes, +: adds, once the other one has told that it has written its half.
  //   direction 1   w  w  +  +  +   -->      Which of two comes first does not change their sum.
  static int64_t added_below(const Backward<S>& q, const Rows& rows, const Team& team) {
    if (q.dx[0] != q.dx[1]) return 0;  // has an array of its own
    return team.crossing ? (rows.T + rows.dir) / 2 : rows.dir * rows.T;
  }

  // `add`: other batches have written weight gradients before.
  static void sweep(const Backward<S>& q, const Rows& rows, const Team& team, int64_t target, int64_t added, bool add,
                    const Out& out, Packed& w, const Scratch& m) {
    const Sizes& n = q.f.n;
    if (team.rank == 0) {
      read_state(rows, q.dh_n, n.B, n.P, m.carry, m.ld_p, &Rows::at_end);
      // Behind the T gradients of its direction; read_state steps over one state [B, H] for each direction itself.
      const S* dc_n = q.every_c ? q.dc_n + (rows.dir + 1) * n.T * n.B * n.H : q.dc_n;
      if (has_c) read_state(rows, dc_n, n.B, n.H, m.dc, m.ld_u, &Rows::at_end);
    }
    team.wait();

    int64_t act = 0;
    for (int64_t end = rows.steps(); end > 0;) {
      const Chunk chunk = Data::chunk_before(rows, end, act, target);
      int64_t row = 0;
      for (int64_t s = chunk.end - 1; s >= chunk.begin; --s, row += act) {
        act = Data::active_up(rows, s, act);
        step(q, rows, s, act, row, w, m);
      }
      const int64_t fresh = added <= chunk.begin ? chunk.rows : added < chunk.end ? (chunk.end - added) * act : 0;
      input_gradient<false>(q, rows.dir, 0, fresh, w, m);
      if (chunk.begin <= added && added < chunk.end) team.tell_other(rows.dir);
      // (Here, so that the other direction has time to come as far.)
      if (q.want_weights)
        out.visit([&](const auto& to) { WeightSums<S, Cell>::add_chunk(q, rows, team, chunk, to, m, act, add); });
      add = true;
      if (fresh < chunk.rows) team.wait_for_other(rows.dir);
      input_gradient<true>(q, rows.dir, fresh, chunk.rows, w, m);
      end = chunk.begin;
      team.wait();  // before the next chunk's gradients take the place of this one's
    }
    finish_states(q, rows, team, m);
  }

  // dx = dg W_ih, or dx += that, for rows [begin, end) of the chunk.
  template <bool add>
  static void input_gradient(const Backward<S>& q, int dir, int64_t begin, int64_t end, Packed& w, const Scratch& m) {
    if (!q.dx[dir]) return;
    product(w.ih, end - begin, m.dg + begin * m.ld_g + first_x_column * q.f.n.H, m.ld_g, false,
            [&](int64_t first, int units, int64_t r0, int count, const T* tile) __attribute__((always_inline)) {
              for (int r = 0; r < count; ++r) {
                S* dx = q.dx[dir] + m.dx_at[begin + r0 + r];
                for (int k = 0; k < units; ++k) {
                  const int64_t at = (first + k) * L, some = q.f.n.I - at;
                  Vec<T> v = load(tile + (r * units + k) * L);
                  if (add) v = as_stored<S>(v) + load_some(dx + at, some);  // (rounded like what came first)
                  store_some(dx + at, v, some);
                }
              }
            });
  }

  static void step(const Backward<S>& q, const Rows& rows, int64_t s, int64_t act, int64_t row, Packed& w, const Scratch& m) {
    const Sizes& n = q.f.n;
    A* dg = m.dg + row * m.ld_g;
    if (n.projected) unproject(q, rows, s, act, row, w, m);
    // Without a projection these are the columns of the carry that this thread has computed itself.
    const Matrix<S>& share = n.projected ? w.hr : w.hh;
    const int64_t begin = share.begin_column(), end = share.end_column();
    for (int64_t i = 0; i < act; ++i) {
      const int64_t b = rows.index[i], t = rows.time(i, s);
      const S* saved = Cell::saved ? Data::saved_at(q, rows.dir, t, b) : nullptr;
      const S* dy = q.dy && !n.projected ? q.dy + t * q.dy_t + b * q.dy_b + rows.dir * n.P : nullptr;
      const S* y = q.f.y + t * q.f.y_t + b * q.f.y_b + rows.dir * n.P;
      const S* h_old = Cell::reads_h ? Data::h_before(q, rows, i, s) : nullptr;
      const S* c_old = has_c ? Data::c_before(q, rows, i, s) : nullptr;
      const S* dc = q.every_c ? q.dc_n + ((rows.dir * (n.T + 1) + t) * n.B + b) * n.H : nullptr;
      S* gates = q.gates ? Data::gates_at(q, rows.dir, t, b) : nullptr;
      const T* dh = n.projected ? m.du + i * m.ld_u : m.carry + i * m.ld_p;
      if (q.dx[rows.dir] && share.team.rank == 0) m.dx_at[row + i] = t * q.dx_t + b * q.dx_b;
      for (int64_t unit = begin; unit < end; unit += L) {
        const int64_t some = n.H - unit;
        Vec<T> save[Cell::saved + 1], old[2], ds_new[2], d[Cell::columns], ds[2], h_new = {};
        for (int v = 0; v < Cell::saved; ++v) save[v] = load_some(saved + v * n.H + unit, some);
        if (Cell::reads_h) old[0] = Data::load_or_zero(h_old, unit, some), h_new = load_some(y + unit, some);
        if (has_c)
          old[1] = Data::load_or_zero(c_old, unit, some),
          ds_new[1] = load(m.dc + i * m.ld_u + unit) + Data::load_or_zero(dc, unit, some);
        ds_new[0] = load(dh + unit) + Data::load_or_zero(dy, unit, some);
        Cell::backward(save, old, h_new, ds_new, d, ds);
        for (int c = 0; c < Cell::columns; ++c) store_some(dg + i * m.ld_g + c * n.H + unit, d[c], some);
        for (int c = 0; gates && c < Cell::columns; ++c) store_some(gates + c * n.H + unit, d[c], some);
        if (!n.projected) store(m.carry + i * m.ld_p + unit, ds[0]);
        if (has_c) store(m.dc + i * m.ld_u + unit, ds[1]);
      }
    }
    share.team.wait();
    if (s == 0 && !q.dh0) return;  // nobody asks for what flows to h0
    product(w.hh, act, dg + first_h_column * n.H, m.ld_g, s & 1,
            [&](int64_t first, int units, int64_t r0, int count, const T* tile) __attribute__((always_inline)) {
              for (int r = 0; r < count; ++r) {
                T* to = m.carry + (r0 + r) * m.ld_p + first * L;
                for (int k = 0; k < units; ++k) store(to + k * L, load(to + k * L) + load(tile + (r * units + k) * L));
              }
            });
  }

  // du = (carry + dy) W_hr; keeps dq = carry + dy for dW_hr, and clears the carry, to which a projected h adds nothing.
  static void unproject(const Backward<S>& q, const Rows& rows, int64_t s, int64_t act, int64_t row, Packed& w,
                        const Scratch& m) {
    const Sizes& n = q.f.n;
    A* dq = m.dq + row * m.ld_q;
    for (int64_t i = 0; i < act; ++i) {
      const S* dy = q.dy ? q.dy + rows.time(i, s) * q.dy_t + rows.index[i] * q.dy_b + rows.dir * n.P : nullptr;
      for (int64_t at = w.hh.begin_column(); at < w.hh.end_column(); at += L) {
        T* carry = m.carry + i * m.ld_p + at;
        store(dq + i * m.ld_q + at, load(carry) + Data::load_or_zero(dy, at, n.P - at));
        store(carry, Vec<T>{});
      }
    }
    w.hr.team.wait();
    product(w.hr, act, dq, m.ld_q, s & 1,
            [&](int64_t first, int units, int64_t r0, int count, const T* tile) __attribute__((always_inline)) {
              for (int r = 0; r < count; ++r) {
                T* to = m.du + (r0 + r) * m.ld_u + first * L;
                for (int k = 0; k < units; ++k) store(to + k * L, load(tile + (r * units + k) * L));
              }
            });
  }

  static void finish_states(const Backward<S>& q, const Rows& rows, const Team& team, const Scratch& m) {
    const Sizes& n = q.f.n;
    for (int64_t i = 0; i < rows.count; ++i) {
      if (!team.mine(i)) continue;
      const int64_t b = rows.index[i];
      if (q.dh0 && rows.at_start(i)) {
        S* dh0 = q.dh0 + (rows.dir * n.B + b) * n.P;
        S* dc0 = has_c ? q.dc0 + (rows.dir * n.B + b) * n.H : nullptr;
        rows.goes_on(i) ? copy(dh0, m.carry + i * m.ld_p, n.P) : zero(dh0, n.P);
        if (has_c) rows.goes_on(i) ? copy(dc0, m.dc + i * m.ld_u, n.H) : zero(dc0, n.H);
      }
      for (int64_t t = rows.padding(i); t < n.T; ++t) {
        if (q.dx[rows.dir]) zero(q.dx[rows.dir] + t * q.dx_t + b * q.dx_b, n.I);
        if (q.gates) zero(Data::gates_at(q, rows.dir, t, b), Cell::columns * n.H);
      }
    }
  }
};

}  // namespace BIRNN_NS
}  // namespace birnn
