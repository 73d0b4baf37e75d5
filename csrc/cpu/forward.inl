// The forward sweep of one direction over a set of rows:
//
//   for each chunk of steps                                                        (many episodes: batch by batch)
//     gather the chunk's input rows; project them:  pre = x W_ih^T + b_ih          one product of about 100 rows
//     for each step                                                                inherently sequential
//       for each panel of W_hh:  tile of h W_hh^T, then the cell, in the order    h_{s-1} -> h_s, c in place, output, saved
//
// The pre-activations of a chunk never leave the cache, h lives in two private buffers that take turns, and the output goes to
// its final place. Not here: threads, allocation, torch.
#pragma once

#include "sweep.h"
#include "unpack.h"

namespace birnn {
namespace BIRNN_NS {

template <class S, class Cell>
struct ForwardSweep {
  typedef Wide<S> T;     // what is computed in
  typedef Operand<S> A;  // what products are computed from
  static constexpr int L = lanes<T>, G = Cell::gates;
  static constexpr bool has_c = Cell::states == 2;
  // Where products take h rounded, the cell has its own.
  static constexpr bool own_h = Cell::reads_h && paired<A>;

  // W_ih, W_hh, their biases and W_hr, packed or to be packed; shared by all teams of a direction.
  struct Packed {
    Matrix<S> ih, hh, hr;
    T *b_ih, *b_hh;

    Packed(const Sizes& n, Arena<T>& arena)
        : ih{{n.I, n.H, G, panel_width(G), n.narrow || paired<A>}, nullptr},
          hh{{n.P, n.H, G, panel_width(G), n.narrow || paired<A>}, nullptr},
          hr{{n.H, n.P, 1, panel_width(1), n.narrow || paired<A>}, nullptr} {
      ih.panels = arena.take(ih.s.template size<T>());
      hh.panels = arena.take(hh.s.template size<T>());
      b_ih = arena.take(ih.s.template row<T>());
      b_hh = arena.take(hh.s.template row<T>());
      hr.panels = n.projected ? arena.take(hr.s.template size<T>()) : nullptr;
    }

    void begin(const Weights<S>& w) {
      ih.raw = w.w_ih, hh.raw = w.w_hh, hr.raw = w.w_hr;
      ih.by_columns = hh.by_columns = hr.by_columns = true;
      pack_bias(ih, w.b_ih, b_ih);
      pack_bias(hh, w.b_hh, b_hh);
    }
  };

  static int64_t packed_size(const Sizes& n) {
    Arena<T> arena{nullptr};
    Packed measured(n, arena);
    return arena.used;
  }

  // Packs everything at once, for several teams.
  static void pack(const Forward<S>& f, int dir, T* memory) {
    Arena<T> arena{memory};
    Packed p(f.n, arena);
    p.begin(f.w[dir]);
    p.ih.pack_all(), p.hh.pack_all(), p.hr.pack_all();
  }

  // What `pack` made, as weights again; null where there is none. Not of halves that are floats in packed memory, which nobody
  // packs for many calls.
  static void unpack(const Sizes& n, T* memory, const Gradients<S>& to) {
    if constexpr (sizeof(A) == sizeof(S)) {
      Arena<T> arena{memory};
      const Packed p(n, arena);
      unpack_weight(p.ih, to.w_ih), unpack_weight(p.hh, to.w_hh);
      if (to.b_ih) unpack_bias(p.ih, p.b_ih, to.b_ih), unpack_bias(p.hh, p.b_hh, to.b_hh);
      if (n.projected) unpack_weight(p.hr, to.w_hr);
    }
  }

  // Rows per chunk: input rows and pre-activations together fill a quarter of L2, which leaves room for the weights.
  static int64_t chunk_target(const Sizes& n, int64_t l2_bytes) {
    const int64_t rows = l2_bytes / 4 / int64_t(sizeof(T)) / (n.I + G * n.H);
    return rows < 32 ? 32 : rows > 256 ? 256 : rows;
  }

  struct Scratch {
    int64_t ld_x, ld_pre, ld_h, ld_u, ld_c;
    A *x, *h[2], *u;
    T *pre, *c, *own;

    Scratch(const Sizes& n, const Rows& rows, int64_t target, Arena<T>& arena) {
      const int64_t capacity = chunk_capacity(rows, target);
      const Shape ih{n.I, n.H, G, panel_width(G)};
      ld_x = padded<A>(n.I), ld_pre = ih.row<T>();
      ld_h = padded<A>(n.P), ld_u = padded<A>(n.H), ld_c = padded<T>(n.H);
      x = arena.template take_as<A>(capacity * ld_x);
      pre = arena.take(capacity * ld_pre);
      h[0] = arena.template take_as<A>(rows.count * ld_h);
      h[1] = arena.template take_as<A>(rows.count * ld_h);
      c = has_c ? arena.take(rows.count * ld_c) : nullptr;
      u = n.projected ? arena.template take_as<A>(rows.count * ld_u) : nullptr;  // h before the projection
      own = own_h ? arena.take(rows.count * ld_c) : nullptr;
    }
  };

  static int64_t scratch_size(const Forward<S>& f, const Task& task, int64_t l2_bytes) {
    const Rows rows(f.lengths, f.n.T, task);
    Arena<T> arena{nullptr};
    Scratch measured(f.n, rows.batch(0), chunk_target(f.n, l2_bytes), arena);
    return arena.used;
  }

  static S* saved_at(const Forward<S>& f, int dir, int64_t t, int64_t b) {
    return f.saved + ((dir * f.n.T + t) * f.n.B + b) * Cell::saved * f.n.H;
  }

  // `packed`: `pack` has been called; else the weights are packed on the way.
  static void run(const Forward<S>& f, const Task& task, const Team& team, bool packed, T* packed_memory, T* scratch_memory,
                  int64_t l2_bytes) {
    const Rows all(f.lengths, f.n.T, task);
    const Sizes& n = f.n;
    const int64_t target = chunk_target(n, l2_bytes), batches = all.batches();
    Arena<T> packed_arena{packed_memory}, scratch_arena{scratch_memory};
    Packed w(n, packed_arena);
    const Scratch m(n, all.batch(0), target, scratch_arena);
    w.ih.team = w.hh.team = w.hr.team = team;
    if (!packed) {
      w.begin(f.w[all.dir]);
      const int64_t total = all.total(), products = batches == 1 ? all.steps() : 2;
      w.ih.expect(batches == 1 && next_chunk(all, 0, target).end == all.steps() ? 1 : 2, total);
      w.hh.expect(products, total), w.hr.expect(products, total);
    }
    for (int64_t k = 0; k < batches; ++k) {
      if (k > 0) team.wait();  // before the next states take the place of the last ones
      sweep(f, all.batch(k), team, target, w, m);
    }
  }

  static void sweep(const Forward<S>& f, const Rows& rows, const Team& team, int64_t target, Packed& w, const Scratch& m) {
    const Sizes& n = f.n;
    S* y = f.y + rows.dir * n.P;

    if (team.rank == 0) {
      read_state(rows, f.h0, n.B, n.P, m.h[0], m.ld_h);
      for (int64_t i = 0; i < rows.count; ++i) zero(m.h[1] + i * m.ld_h, m.ld_h);
      if (has_c) read_state(rows, f.c0, n.B, n.H, m.c, m.ld_c);
      if (own_h) read_state(rows, f.h0, n.B, n.H, m.own, m.ld_c);
    }

    Chunk chunk{0, 0, 0};
    for (int64_t act = rows.count; chunk.end < rows.steps();) {
      chunk = next_chunk(rows, chunk.end, target);
      project(f, rows, chunk, w, m, act);
      T* pre = m.pre;
      for (int64_t s = chunk.begin; s < chunk.end; ++s) {
        act = rows.active(s, act);
        step(f, rows, s, act, w, m, pre, y);
        pre += act * m.ld_pre;
      }
    }
    finish(f, rows, team, m, y);
  }

  static void project(const Forward<S>& f, const Rows& rows, const Chunk& chunk, Packed& w, const Scratch& m, int64_t act) {
    A* to = m.x;
    for (int64_t s = chunk.begin; s < chunk.end; ++s) {
      act = rows.active(s, act);
      for (int64_t i = 0; i < act; ++i, to += m.ld_x) {
        if (w.ih.team.mine(s + i)) copy(to, f.x + rows.time(i, s) * f.x_t + rows.index[i] * f.x_b, f.n.I);
      }
    }
    w.ih.team.wait();
    product(w.ih, chunk.rows, m.x, m.ld_x, false,
            [&](int64_t first, int units, int64_t row, int count, const T* tile) __attribute__((always_inline)) {
              const int nv = units * G;
              const T* bias = w.b_ih + first * G * L;
              for (int r = 0; r < count; ++r) {
                T* pre = m.pre + (row + r) * m.ld_pre + first * G * L;
                for (int j = 0; j < nv; ++j) store(pre + j * L, load(tile + (r * nv + j) * L) + load(bias + j * L));
              }
            });
  }

  static void step(const Forward<S>& f, const Rows& rows, int64_t s, int64_t act, Packed& w, const Scratch& m, const T* pre,
                   S* y) {
    const Sizes& n = f.n;
    const A* h = m.h[s & 1];
    A* h_new = m.h[(s + 1) & 1];
    const bool backwards = s & 1;  // every other step meets the panels in the opposite order
    A* u_new = n.projected ? m.u : h_new;
    const int64_t ld_u_new = n.projected ? m.ld_u : m.ld_h;

    product(w.hh, act, h, m.ld_h, backwards,
            [&](int64_t first, int units, int64_t row, int count, const T* tile) __attribute__((always_inline)) {
              const int nv = units * G;
              const T* bias = w.b_hh + first * G * L;
              for (int r = 0; r < count; ++r) {
                const int64_t i = row + r, t = rows.time(i, s), b = rows.index[i];
                const T* pre_row = pre + i * m.ld_pre + first * G * L;
                for (int k = 0; k < units; ++k) {
                  const int64_t unit = (first + k) * L, some = n.H - unit;
                  Vec<T> gx[G], gh[G], old[2], now[2], save[Cell::saved + 1];
                  for (int g = 0; g < G; ++g) {
                    gx[g] = load(pre_row + (g * units + k) * L);
                    gh[g] = load(tile + (r * nv + g * units + k) * L) + load(bias + (g * units + k) * L);
                  }
                  if (Cell::reads_h) old[0] = own_h ? load(m.own + i * m.ld_c + unit) : load(h + i * m.ld_h + unit);
                  if (has_c) old[1] = load(m.c + i * m.ld_c + unit);
                  Cell::forward(gx, gh, old, now, save);
                  store(u_new + i * ld_u_new + unit, now[0]);
                  if (own_h) store(m.own + i * m.ld_c + unit, now[0]);
                  if (has_c) store(m.c + i * m.ld_c + unit, now[1]);
                  if (!n.projected) store_some(y + t * f.y_t + b * f.y_b + unit, now[0], some);
                  if (Cell::saved && f.saved) {
                    S* to = saved_at(f, rows.dir, t, b) + unit;
                    for (int v = 0; v < Cell::saved; ++v) store_some(to + v * n.H, save[v], some);
                  }
                }
              }
            });

    w.hh.team.wait();
    if (!n.projected) return;
    product(w.hr, act, m.u, m.ld_u, backwards,
            [&](int64_t first, int units, int64_t row, int count, const T* tile) __attribute__((always_inline)) {
              for (int r = 0; r < count; ++r) {
                const int64_t i = row + r;
                S* to = y + rows.time(i, s) * f.y_t + rows.index[i] * f.y_b;
                for (int k = 0; k < units; ++k) {
                  const int64_t unit = (first + k) * L;
                  const Vec<T> v = load(tile + (r * units + k) * L);
                  store(h_new + i * m.ld_h + unit, v);
                  store_some(to + unit, v, n.P - unit);
                }
              }
            });
    w.hr.team.wait();
  }

  // Final states, each of its row's own last step, and zeros beyond the lengths.
  static void finish(const Forward<S>& f, const Rows& rows, const Team& team, const Scratch& m, S* y) {
    const Sizes& n = f.n;
    if (rows.steps() == 0) team.wait();  // for the first states; else there were steps to wait in
    for (int64_t i = 0; i < rows.count; ++i) {
      if (!team.mine(i)) continue;
      const int64_t b = rows.index[i], length = rows.length(i);
      if (rows.at_end(i)) {
        copy(f.h_n + (rows.dir * n.B + b) * n.P, m.h[length & 1] + i * m.ld_h, n.P);
        if (has_c) copy(f.c_n + (rows.dir * n.B + b) * n.H, m.c + i * m.ld_c, n.H);
      }
      for (int64_t t = rows.padding(i); t < n.T; ++t) {
        zero(y + t * f.y_t + b * f.y_b, n.P);
        if (Cell::saved && f.saved) zero(saved_at(f, rows.dir, t, b), Cell::saved * n.H);
      }
    }
  }
};

}  // namespace BIRNN_NS
}  // namespace birnn
