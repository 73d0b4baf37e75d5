// What the backward sweep of a direction works on: packed weights, scratch memory, chunks of steps, and where h, c and the saved
// gates lie. Not here: arithmetic (backward.inl, weight_gradients.h).
#pragma once

#include "sweep.h"

namespace birnn {
namespace BIRNN_NS {

template <class S, class Cell>
struct BackwardData {
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
    return rows < 128 ? 128 : rows > most_rows_of_chunk ? most_rows_of_chunk : rows;
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
};

}  // namespace BIRNN_NS
}  // namespace birnn
