// The gradients of one direction's weights, chunk by chunk:
//
//   dW_ih += dg^T x    dW_hh += dg^T h_{s-1}    db += column sums of dg       and with a projection  dW_hr += dq^T u
//
// dg and dq as the sweep has left them in scratch memory, a row for each step of each row at work. Not here: the sweep.
#pragma once

#include "backward_data.h"

namespace birnn {
namespace BIRNN_NS {

template <class S, class Cell>
struct WeightSums : BackwardData<S, Cell> {
  typedef BackwardData<S, Cell> Data;
  using Data::G;
  using Data::L;
  using Data::wide;
  using typename Data::A;
  using typename Data::Scratch;
  using typename Data::T;

  template <class To>
  static void add_chunk(const Backward<S>& q, const Rows& rows, const Team& team, const Chunk& chunk, const Gradients<To>& out,
                        const Scratch& m, int64_t act, bool add) {
    const Sizes& n = q.f.n;
    const Shape x{chunk.rows, n.I, 1, wide, paired<A>}, h{chunk.rows, n.P, 1, wide, paired<A>},
        u{chunk.rows, n.H, 1, wide, paired<A>};
    // Calls f(row of the chunk, i, s) for this thread's share of the chunk's rows, in the order in which they are stored.
    const auto each_row = [&](auto&& f) __attribute__((always_inline)) {
      int64_t row = 0, a = rows.active(chunk.end - 1, act);
      for (int64_t s = chunk.end - 1; s >= chunk.begin; --s) {
        a = Data::active_up(rows, s, a);
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
    each_row([&](int64_t row, int64_t i, int64_t s) { pack_row<A>(h, row, Data::h_before(q, rows, i, s), m.operand); });
    for (int g = 0; g < G; ++g) {
      product_transposed(h, m.operand, begin, end, m.dg + Cell::h_column(g) * n.H, m.ld_g, out.w_hh + g * n.H * n.P, n.P, add,
                         m.strip);
    }
    if constexpr (!Cell::reads_h) {
      if (n.projected) {
        team.wait();
        each_row([&](int64_t row, int64_t i, int64_t s) {
          const S* saved = Data::saved_at(q, rows.dir, rows.time(i, s), rows.index[i]);
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

  template <class To>
  static void finish(const Backward<S>& q, const Rows& rows, const Gradients<To>& out, const Scratch& m) {
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
