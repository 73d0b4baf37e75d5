// The kernels of many blocks (G2): the units of one direction are spread over blocks, each of which holds the recurrent weights
// of its units in shared memory through all steps of a chunk. What a step has computed is handed to the other blocks through L2
// in words that carry the number of the step (exchange.h); there is no barrier across the grid.
//
//   block = (group of rows of the batch, part of the units); groups have nothing to do with each other
//
//   a step     publish own values -> collect everybody's, barrier -> product, barrier -> cell
//   forward    the state before the step [rows][H]              times W_hh            -> gates of own units
//   backward   gate gradients of the step [rows][gates][H]      times W_hh transposed -> carries of own units
//
// But for the product (chip.h), a thread is (row r, unit u), with h (or carry) and c in registers.
// Not here: projections, float64, the choice of the tier.
#include <atomic>

#include "chip.h"

namespace birnn {
namespace cuda {

namespace {

constexpr int most_threads = 512, most_units = 64, most_hidden = 1024;

// Units as they lie in words: an odd one has a neighbour that is zero.
template <class T>
BIRNN_BOTH int in_words(int H) {
  return rounded_up(H, per_word<T>);
}

// Publishes this thread's value as column k of its row of `words`. All lanes of the warp take part.
template <class T>
BIRNN_DEVICE void publish(const Here& me, uint64_t* words, int width, uint32_t tag, int k, T own) {
  const uint32_t payload = payload_with_neighbour(own);
  if (me.mine && k % per_word<T> == 0) store_word(words + int64_t(me.r) * width + k / per_word<T>, word_of(tag, payload));
}

template <class T>
BIRNN_DEVICE void write_nan(T* to, int64_t stride, int count) {
  for (int v = 0; to && v < count; ++v) to[v * stride] = Narrow<T>::of(NAN);
}

template <class T, class Cell>
BIRNN_KERNEL(most_threads)
forward_spread_kernel(const ForwardChunk a) {
  constexpr int G = Cell::gates, S = Cell::saved;
  const Plan& p = a.plan;
  BIRNN_SHARED(T, memory);
  const Here me(a.n, p, a.lengths);
  Chip<T, G> chip(p, memory);
  const int H = me.H, width = in_words<T>(H) / per_word<T>;
  const int64_t B = a.n.B, i = me.b * H + me.unit;
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
  bool lost = block_any(flag_is_up(a.exchange));

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
    uint64_t* words = a.exchange.words + (slot_of(tag) * B + me.first) * width;
    if (!lost) publish(me, words, width, tag, int(me.unit), Narrow<T>::of(old[0]));
    float x[G];
    const float* pre = as<float>(a.pre) + (row - a.t_begin * B) * G * H + me.unit;
    for (int g = 0; g < G; ++g) x[g] = works ? pre[g * H] + b_ih[g] : 0;  // before the wait, which hides theirs
    if (!lost) lost = block_any(!collect(a.exchange, words, tag, me.rows, width, chip.vector, chip.stride(p)));
    if (lost) {
      old[0] = old[1] = NAN;
      if (!works) continue;
      write_nan(y, 0, 1);
      write_nan(saved, H, S);
      continue;
    }
    chip.multiply(p, me, 0);
    block_barrier();
    if (!works) continue;
    float h[G];
    for (int g = 0; g < G; ++g) h[g] = chip.sum(p, me, g) + b_hh[g];
    Cell::forward(x, h, old, now, save);
    const T rounded = Narrow<T>::of(now[0]);
    old[0] = wide(rounded), old[1] = now[1];
    *y = rounded;
    for (int v = 0; saved && v < S; ++v) saved[v * H] = Narrow<T>::of(save[v]);
  }
  if (!me.mine) return;
  as<T>(a.h)[i] = Narrow<T>::of(old[0]);
  if (Cell::states == 2) as<float>(a.c)[i] = old[1];
}

template <class T, class Cell>
BIRNN_KERNEL(most_threads)
backward_spread_kernel(const BackwardChunk a) {
  constexpr int G = Cell::gates, C = Cell::columns, first = first_h_column<Cell>;
  const Plan& p = a.plan;
  BIRNN_SHARED(T, memory);
  const Here me(a.n, p, a.lengths);
  Chip<T, 1> chip(p, memory);
  // Gates go together, or each in a part of its own.
  const int H = me.H, He = in_words<T>(H), together = G / p.parts, width = together * He / per_word<T>;
  const int64_t B = a.n.B, i = me.b * H + me.unit, steps = a.t_end - a.t_begin;
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
  bool lost = block_any(flag_is_up(a.exchange));

  for (int64_t n = 0; n < steps; ++n) {
    const int64_t t = time(n);
    const bool works = me.mine && t < me.length, busy = t < me.longest;
    const uint32_t tag = uint32_t(a.dir == 0 ? a.n.T - 1 - t : t) + 1;
    const auto words = [&](int part) { return a.exchange.words + ((slot_of(tag) * p.parts + part) * B + me.first) * width; };
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
        publish(me, words(g / together), width, tag, g % together * He + int(me.unit), rounded);
      }
      if (me.mine) dg[k * H] = rounded;
    }
    // The next step's operands travel while this step's words do.
    if (n + 1 < steps && me.mine && time(n + 1) < me.length) operands.load(a, time(n + 1), me.b, me.unit, me.length);
    if (!busy) continue;  // nobody in this group is at work
    for (int part = 0; part < p.parts && !lost; ++part) {
      lost = block_any(!collect(a.exchange, words(part), tag, me.rows, width, chip.vector, chip.stride(p)));
      if (!lost) chip.multiply(p, me, part);
      block_barrier();
    }
    if (lost) {
      carry = dc = NAN;
      if (works) write_nan(dg, H, C);
      continue;
    }
    if (works) carry = ds[0] + chip.sum(p, me, 0);
  }
  if (!me.mine) return;
  as<float>(a.carry)[i] = carry;
  if (Cell::states == 2) as<float>(a.dc)[i] = dc;
}

// ---- how a direction is spread ----

// The plan with the fewest clocks whose blocks, for all directions, are on the device at the same time; no units if there is none.
// G: gates of the product (1 in backward), columns: values that a unit hands over (1 in forward). An estimate; nobody has
// measured what a step takes. A plan in parts is for what does not fit otherwise.
template <class T, int G, class Args>
Plan best_plan(void (*kernel)(Args), const Sizes& n, int columns) {
  Plan best = {};
  if (n.projected || n.H > most_hidden || n.B < 1 || n.T >= INT32_MAX || !has_tiles_of<T>()) return best;
  const int H = int(n.H), blocks = multiprocessors() / int(n.D);
  int64_t fewest = 0;
  const auto consider = [&](int rows, int parts) {
    Plan p = {};
    p.parts = parts;
    p.rows = n.B < rows ? int(n.B) : rows;
    if ((n.B + p.rows - 1) / p.rows > blocks) return;
    p.groups = int((n.B + p.rows - 1) / p.rows);
    p.units = rounded_up((H + blocks / p.groups - 1) / (blocks / p.groups), 2);
    if (p.units > most_units || p.units * p.rows > most_threads) return;
    p.splits = (H + p.units - 1) / p.units;
    for (p.slices = 32; p.slices * p.units > most_threads;) p.slices /= 2;
    p.length = Chip<T, G>::padded(columns / p.parts * in_words<T>(H), p);
    // 64 bytes through L2 a clock.
    const int64_t clocks = Chip<T, G>::clocks(p) + int64_t(p.rows) * columns * in_words<T>(H) / per_word<T> / 8;
    if (best.units && clocks >= fewest) return;
    if (n.D * p.groups * p.splits > resident_blocks(kernel, threads_of(p), Chip<T, G>::bytes(p))) return;
    best = p, fewest = clocks;
  };
  for (int rows = 1; rows <= most_rows; rows *= 2) consider(rows, 1);
  for (int rows = 1; rows <= most_rows && !best.units && columns > 1; rows *= 2) consider(rows, columns);
  return best;
}

template <class T, int G, class Chunk>
void launch_spread(void (*kernel)(Chunk), const Chunk& a, const Launch& l, const char* what) {
  const Grid grid = {int64_t(a.plan.groups) * a.plan.splits, 1, threads_of(a.plan), 1};
  launch_together(kernel, grid, Chip<T, G>::bytes(a.plan), l.stream, a, what);
}

std::atomic<uint32_t*> alarm_in_use{nullptr};

}  // namespace

uint32_t* alarm() {
  static uint32_t* const word = new_word_for_host();
  alarm_in_use = word;
  return word;
}

bool take_alarm() {
  volatile uint32_t* const word = alarm_in_use.load();
  if (!word || !*word) return false;
  *word = 0;
  return true;
}

Plan spread_plan(const Sizes& n, bool backward, const Launch& l) {
  Plan p = {};
  by_short_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      using T = decltype(zero);
      using Cell = decltype(cell);
      p = backward ? best_plan<T, 1>(&backward_spread_kernel<T, Cell>, n, Cell::gates)
                   : best_plan<T, Cell::gates>(&forward_spread_kernel<T, Cell>, n, 1);
    });
  });
  return p;
}

std::string describe(const Plan& p, bool backward, const Launch& l) {
  size_t bytes = 0;
  by_short_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      using T = decltype(zero);
      bytes = backward ? Chip<T, 1>::bytes(p) : Chip<T, decltype(cell)::gates>::bytes(p);
    });
  });
  return std::to_string(p.groups * p.splits) + " blocks a direction, each with " + std::to_string(p.rows) + " rows, " +
         std::to_string(p.units) + " units and " + std::to_string((bytes + 1023) / 1024) + " KiB" +
         (p.parts > 1 ? ", gate by gate" : "");
}

int64_t spread_words(const Sizes& n, bool backward, const Launch& l) {
  int64_t words = 0;
  by_short_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      using T = decltype(zero);
      const int64_t columns = backward ? decltype(cell)::gates : 1;
      words = 2 * n.B * columns * in_words<T>(int(n.H)) / per_word<T> + 1;
    });
  });
  return words;
}

void forward_spread(const ForwardChunk& a, const Launch& l) {
  by_short_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      using T = decltype(zero);
      using Cell = decltype(cell);
      launch_spread<T, Cell::gates>(&forward_spread_kernel<T, Cell>, a, l, "layer, forward spread");
    });
  });
}

void backward_spread(const BackwardChunk& a, const Launch& l) {
  by_short_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      using T = decltype(zero);
      using Cell = decltype(cell);
      launch_spread<T, 1>(&backward_spread_kernel<T, Cell>, a, l, "layer_backward, backward spread");
    });
  });
}

}  // namespace cuda
}  // namespace birnn
