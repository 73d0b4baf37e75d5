// The backward sweep of one direction over a set of rows, from its last step to its first:
//
//   for each chunk of steps, last first
//     for each step, last first
//       the cell's backward on  carry + dy  ->  gate gradients dg [rows, columns * H], and what flows to h_{s-1} directly
//       carry += dg W_hh                                                             inherently sequential
//     dW_ih += dg^T x    dW_hh += dg^T h_{s-1}    db += column sums of dg    dx = dg W_ih      products over the whole chunk
//
// carry [rows, P] is the gradient of h_{s-1} that comes from later steps; a row's carry starts as its gradient of h_n.
// With a projection, dq = carry + dy is first taken through W_hr, and dW_hr += dq^T u. Not here: threads, allocation, torch.
#pragma once

#include "sweep.h"

namespace birnn {
namespace BIRNN_NS {

template <class S, class Cell>
struct BackwardSweep {
  typedef Wide<S> T;     // what is computed in
  typedef Operand<S> A;  // what products are computed from
  static constexpr int L = lanes<T>, G = Cell::gates;
  static constexpr bool has_c = Cell::states == 2;
  static constexpr int first_x_column = Cell::x_column(G - 1) < Cell::x_column(0) ? Cell::x_column(G - 1) : Cell::x_column(0);
  static constexpr int first_h_column = Cell::h_column(0);
  // Columns follow the gates of a weight in their order, but may begin in the middle of them.
  static constexpr int first_x_gate = (G - (Cell::x_column(0) - first_x_column)) % G;
  static_assert(Cell::x_column(first_x_gate) == first_x_column && Cell::h_column(G - 1) == first_h_column + G - 1, "");
  static constexpr int wide = panel_width(1);

  // W_hh, W_ih and W_hr for products from the left (their rows are the summed index), packed or to be packed; shared by all
  // teams of a direction.
  struct Packed {
    Matrix<S> ih, hh, hr;

    Packed(const Backward<S>& q, Arena<T>& arena)
        : ih{{G * q.f.n.H, q.f.n.I, 1, wide, paired<A>}, nullptr},
          hh{{G * q.f.n.H, q.f.n.P, 1, wide, paired<A>}, nullptr},
          hr{{q.f.n.P, q.f.n.H, 1, wide, paired<A>}, nullptr} {
      ih.panels = q.dx[0] ? arena.take(ih.s.template size<T>()) : nullptr;
      hh.panels = arena.take(hh.s.template size<T>());
      hr.panels = q.f.n.projected ? arena.take(hr.s.template size<T>()) : nullptr;
    }

    void begin(const Backward<S>& q, int dir) {
      const Weights<S>& w = q.f.w[dir];
      ih.raw = q.dx[0] ? w.w_ih : nullptr, hh.raw = w.w_hh, hr.raw = w.w_hr;
      // The gradient columns of the input side begin with another gate than the weight's rows do.
      ih.shift = first_x_gate * q.f.n.H;
    }
  };

  // Where weight gradients go (table.h).
  struct Out {
    const Gradients<T>& sums;
    const Gradients<S>* rounded;

    template <class F>
    void visit(F&& f) const {
      if constexpr (sizeof(S) < sizeof(T)) {
        if (rounded) return f(*rounded);
      }
      f(sums);
    }
  };

  static int64_t packed_size(const Backward<S>& q) {
    Arena<T> arena{nullptr};
    Packed measured(q, arena);
    return arena.used;
  }

  // Packs everything at once, for several teams.
  static void pack(const Backward<S>& q, int dir, T* memory) {
    Arena<T> arena{memory};
    Packed p(q, arena);
    p.begin(q, dir);
    p.ih.pack_all(), p.hh.pack_all(), p.hr.pack_all();
  }

  // Rows per chunk: the input rows, packed, fill half of L2; each chunk reads and writes the weight gradients once, so that
  // few rows would make that the main cost.
  static int64_t chunk_target(const Sizes& n, int64_t l2_bytes) {
    const int64_t rows = l2_bytes / 2 / int64_t(sizeof(T)) / (n.I > n.P ? n.I : n.P);
    return rows < 128 ? 128 : rows > 512 ? 512 : rows;
  }

  struct Scratch {
    int64_t capacity, ld_g, ld_q, ld_p, ld_u;
    A *dg, *dq;
    T *carry, *dc, *du, *operand, *sums;
    A *strip, *hidden;  // one per member of the team
    int64_t strip_size;
    int64_t* dx_at;  // [capacity] where a row of the chunk has its dx

    Scratch(const Backward<S>& q, const Rows& rows, const Team& team, int64_t target, Arena<T>& arena) {
      const Sizes& n = q.f.n;
      capacity = chunk_capacity(rows, target);
      ld_g = padded<A>(Cell::columns * n.H), ld_q = padded<A>(n.P), ld_p = padded<T>(n.P), ld_u = padded<T>(n.H);
      dg = arena.template take_as<A>(capacity * ld_g);
      carry = arena.take(rows.count * ld_p);
      dc = has_c ? arena.take(rows.count * ld_u) : nullptr;
      dq = n.projected ? arena.template take_as<A>(capacity * ld_q) : nullptr;
      du = n.projected ? arena.take(rows.count * ld_u) : nullptr;
      int64_t widest = n.I > n.P ? n.I : n.P;
      if (n.H > widest) widest = n.H;
      operand = arena.take(capacity * round_up(widest, L));
      strip_size = (capacity + 1) * max_tile_rows;
      strip = arena.template take_as<A>(team.size * strip_size);
      hidden = n.projected ? arena.template take_as<A>(team.size * ld_u) : nullptr;
      sums = arena.take(round_up(Cell::columns * n.H, L));
      dx_at = arena.template take_as<int64_t>(capacity);
      if (arena.base) strip += team.rank * strip_size, hidden += n.projected ? team.rank * ld_u : 0;
    }
  };

  static int64_t scratch_size(const Backward<S>& q, const Task& task, const Team& team, int64_t l2_bytes) {
    const Rows rows(q.f.lengths, q.f.n.T, task);
    Arena<T> arena{nullptr};
    Scratch measured(q, rows.batch(0), team, chunk_target(q.f.n, l2_bytes), arena);
    return arena.used;
  }

  // The chunk that ends before step `end`; its rows are stored last step first.
  static Chunk chunk_before(const Rows& rows, int64_t end, int64_t act, int64_t target) {
    Chunk c{end, end, 0};
    while (c.begin > 0) {
      act = active_up(rows, c.begin - 1, act);
      if (c.begin < end && c.rows + act > target) break;
      c.rows += act;
      --c.begin;
    }
    return c;
  }
  static int64_t active_up(const Rows& rows, int64_t s, int64_t act) {
    while (act < rows.count && rows.length(act) > s) ++act;
    return act;
  }

  static const S* saved_at(const Backward<S>& q, int dir, int64_t t, int64_t b) {
    return q.f.saved + ((dir * q.f.n.T + t) * q.f.n.B + b) * Cell::saved * q.f.n.H;
  }

  static S* gates_at(const Backward<S>& q, int dir, int64_t t, int64_t b) {
    return q.gates + ((dir * q.f.n.T + t) * q.f.n.B + b) * Cell::columns * q.f.n.H;
  }

  // h_{s-1} and c_{s-1} of row i; null is a state of zeros.
  static const S* h_before(const Backward<S>& q, const Rows& rows, int64_t i, int64_t s) {
    const Forward<S>& f = q.f;
    const int64_t b = rows.index[i];
    if (s > 0) return f.y + rows.time(i, s - 1) * f.y_t + b * f.y_b + rows.dir * f.n.P;
    return f.h0 && rows.goes_on(i) ? f.h0 + (rows.dir * f.n.B + b) * f.n.P : nullptr;
  }
  static const S* c_before(const Backward<S>& q, const Rows& rows, int64_t i, int64_t s) {
    const Forward<S>& f = q.f;
    const int64_t b = rows.index[i];
    if (s > 0) return saved_at(q, rows.dir, rows.time(i, s - 1), b) + (Cell::saved - 1) * f.n.H;  // c' is saved last
    return f.c0 && rows.goes_on(i) ? f.c0 + (rows.dir * f.n.B + b) * f.n.H : nullptr;
  }

  static Vec<T> load_or_zero(const S* p, int64_t unit, int64_t some) { return p ? load_some(p + unit, some) : Vec<T>{}; }

  static bool one_chunk(const Backward<S>& q, const Task& task, int64_t l2_bytes) {
    return one_chunk(Rows(q.f.lengths, q.f.n.T, task), chunk_target(q.f.n, l2_bytes));
  }
  static bool one_chunk(const Rows& rows, int64_t target) {
    return rows.batches() == 1 && chunk_before(rows, rows.steps(), 0, target).begin == 0;
  }

  static void run(const Backward<S>& q, const Task& task, const Team& team, const Gradients<T>& sums,
                  const Gradients<S>* rounded, bool packed, T* packed_memory, T* scratch_memory, int64_t l2_bytes) {
    const Out out{sums, rounded};
    const Rows all(q.f.lengths, q.f.n.T, task);
    const Sizes& n = q.f.n;
    const int64_t target = chunk_target(n, l2_bytes), batches = all.batches();
    Arena<T> packed_arena{packed_memory}, scratch_arena{scratch_memory};
    Packed w(q, packed_arena);
    const Scratch m(q, all.batch(0), team, target, scratch_arena);
    w.ih.team = w.hh.team = w.hr.team = team;
    if (!packed) {
      w.begin(q, all.dir);
      const int64_t total = all.total(), products = batches == 1 ? all.steps() : 2;
      w.ih.expect(one_chunk(all, target) ? 1 : 2, total);
      w.hh.expect(products, total), w.hr.expect(products, total);
    }
    if (team.rank == 0) zero(m.sums, Cell::columns * n.H);
    for (int64_t k = 0; k < batches; ++k) {
      if (k > 0) team.wait();  // before the next gradients of states take the place of the last ones
      sweep(q, all.batch(k), team, target, k > 0, out, w, m);
    }
    if (q.want_weights && team.rank == 0) out.visit([&](const auto& to) { finish_weights(q, all, to, m); });
  }

  // `add`: other batches have written weight gradients before.
  static void sweep(const Backward<S>& q, const Rows& rows, const Team& team, int64_t target, bool add, const Out& out,
                    Packed& w, const Scratch& m) {
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
      const Chunk chunk = chunk_before(rows, end, act, target);
      int64_t row = 0;
      for (int64_t s = chunk.end - 1; s >= chunk.begin; --s, row += act) {
        act = active_up(rows, s, act);
        step(q, rows, s, act, row, w, m);
      }
      if (q.want_weights) out.visit([&](const auto& to) { weight_gradients(q, rows, team, chunk, to, m, act, add); });
      add = true;
      if (q.dx[rows.dir]) {
        product(w.ih, chunk.rows, m.dg + first_x_column * n.H, m.ld_g, false,
                [&](int64_t first, int units, int64_t r0, int count, const T* tile) __attribute__((always_inline)) {
                  for (int r = 0; r < count; ++r) {
                    S* dx = q.dx[rows.dir] + m.dx_at[r0 + r];
                    for (int k = 0; k < units; ++k) {
                      const int64_t at = (first + k) * L;
                      store_some(dx + at, load(tile + (r * units + k) * L), n.I - at);
                    }
                  }
                });
      }
      end = chunk.begin;
      team.wait();  // before the next chunk's gradients take the place of this one's
    }
    finish_states(q, rows, team, m);
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
      const S* saved = Cell::saved ? saved_at(q, rows.dir, t, b) : nullptr;
      const S* dy = q.dy && !n.projected ? q.dy + t * q.dy_t + b * q.dy_b + rows.dir * n.P : nullptr;
      const S* y = q.f.y + t * q.f.y_t + b * q.f.y_b + rows.dir * n.P;
      const S* h_old = Cell::reads_h ? h_before(q, rows, i, s) : nullptr;
      const S* c_old = has_c ? c_before(q, rows, i, s) : nullptr;
      const S* dc = q.every_c ? q.dc_n + ((rows.dir * (n.T + 1) + t) * n.B + b) * n.H : nullptr;
      S* gates = q.gates ? gates_at(q, rows.dir, t, b) : nullptr;
      const T* dh = n.projected ? m.du + i * m.ld_u : m.carry + i * m.ld_p;
      if (q.dx[rows.dir] && share.team.rank == 0) m.dx_at[row + i] = t * q.dx_t + b * q.dx_b;
      for (int64_t unit = begin; unit < end; unit += L) {
        const int64_t some = n.H - unit;
        Vec<T> save[Cell::saved + 1], old[2], ds_new[2], d[Cell::columns], ds[2], h_new = {};
        for (int v = 0; v < Cell::saved; ++v) save[v] = load_some(saved + v * n.H + unit, some);
        if (Cell::reads_h) old[0] = load_or_zero(h_old, unit, some), h_new = load_some(y + unit, some);
        if (has_c)
          old[1] = load_or_zero(c_old, unit, some), ds_new[1] = load(m.dc + i * m.ld_u + unit) + load_or_zero(dc, unit, some);
        ds_new[0] = load(dh + unit) + load_or_zero(dy, unit, some);
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
        store(dq + i * m.ld_q + at, load(carry) + load_or_zero(dy, at, n.P - at));
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

  template <class To>
  static void weight_gradients(const Backward<S>& q, const Rows& rows, const Team& team, const Chunk& chunk,
                               const Gradients<To>& out, const Scratch& m, int64_t act, bool add) {
    const Sizes& n = q.f.n;
    const Shape x{chunk.rows, n.I, 1, wide, paired<A>}, h{chunk.rows, n.P, 1, wide, paired<A>},
        u{chunk.rows, n.H, 1, wide, paired<A>};
    // Calls f(row of the chunk, i, s) for this thread's share of the chunk's rows, in the order in which they are stored.
    const auto each_row = [&](auto&& f) __attribute__((always_inline)) {
      int64_t row = 0, a = rows.active(chunk.end - 1, act);
      for (int64_t s = chunk.end - 1; s >= chunk.begin; --s) {
        a = active_up(rows, s, a);
        for (int64_t i = 0; i < a; ++i, ++row) {
          if (team.mine(paired<A> ? row / 2 : row)) f(row, i, s);
        }
      }
      team.wait();
    };
    const int64_t begin = team.begin(n.H), end = team.end(n.H);
    each_row([&](int64_t row, int64_t i, int64_t s) {
      pack_row<A>(x, row, q.f.x + rows.time(i, s) * q.f.x_t + rows.index[i] * q.f.x_b, m.operand);
    });
    for (int g = 0; g < G; ++g) {
      product_transposed(x, m.operand, begin, end, m.dg + Cell::x_column(g) * n.H, m.ld_g, out.w_ih + g * n.H * n.I, n.I, add,
                         m.strip);
    }
    team.wait();  // before h takes the place of x
    each_row([&](int64_t row, int64_t i, int64_t s) { pack_row<A>(h, row, h_before(q, rows, i, s), m.operand); });
    for (int g = 0; g < G; ++g) {
      product_transposed(h, m.operand, begin, end, m.dg + Cell::h_column(g) * n.H, m.ld_g, out.w_hh + g * n.H * n.P, n.P, add,
                         m.strip);
    }
    if constexpr (!Cell::reads_h) {
      if (n.projected) {
        team.wait();
        each_row([&](int64_t row, int64_t i, int64_t s) {
          const S* saved = saved_at(q, rows.dir, rows.time(i, s), rows.index[i]);
          for (int64_t unit = 0; unit < n.H; unit += L) {
            Vec<T> save[Cell::saved];
            for (int v = 0; v < Cell::saved; ++v) save[v] = load_some(saved + v * n.H + unit, n.H - unit);
            store(m.hidden + unit, Cell::hidden(save));
          }
          pack_row<A>(u, row, static_cast<const A*>(m.hidden), m.operand);
        });
        product_transposed(u, m.operand, team.begin(n.P), team.end(n.P), m.dq, m.ld_q, out.w_hr, n.H, add, m.strip);
      }
    }
    if (!out.b_ih && !out.b_hh) return;
    const int64_t width = Cell::columns * n.H, vectors = divide_up(width, L);
    add_column_sums(m.dg, m.ld_g, chunk.rows, team.begin(vectors) * L, smaller(team.end(vectors) * L, width), m.sums);
  }

  // Pairwise in three levels (8 rows, a chunk, all chunks): in one long chain the rounding errors of a bias gradient would grow
  // with T * B.
  static void add_column_sums(const A* from, int64_t ld, int64_t rows, int64_t begin, int64_t width, T* sums) {
    for (int64_t j = begin; j < width; j += L) {
      const int64_t some = width - j;
      Vec<T> total = {};
      for (int64_t r = 0; r < rows; r += 8) {
        Vec<T> few = {};
        for (int64_t k = r; k < smaller(r + 8, rows); ++k) few += load_some(from + k * ld + j, some);
        total += few;
      }
      store_some(sums + j, load_some(sums + j, some) + total, some);
    }
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
        if (q.gates) zero(gates_at(q, rows.dir, t, b), Cell::columns * n.H);
      }
    }
  }

  template <class To>
  static void finish_weights(const Backward<S>& q, const Rows& rows, const Gradients<To>& out, const Scratch& m) {
    const Sizes& n = q.f.n;
    for (int g = 0; g < G; ++g) {
      if (out.b_ih) copy(out.b_ih + g * n.H, m.sums + Cell::x_column(g) * n.H, n.H);
      if (out.b_hh) copy(out.b_hh + g * n.H, m.sums + Cell::h_column(g) * n.H, n.H);
    }
    if (rows.steps() > 0) return;  // else no chunk has written them
    zero(out.w_ih, G * n.H * n.I);
    zero(out.w_hh, G * n.H * n.P);
    if (n.projected) zero(out.w_hr, n.P * n.H);
  }
};

}  // namespace BIRNN_NS
}  // namespace birnn
