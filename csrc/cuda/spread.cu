// The kernels of many blocks that hand each other words through L2 (G2): their entries, plans and launches. All blocks of a
// direction are one cooperative launch; there is no barrier across the grid.
// Not here: what a step is (steps.h), the exchange (exchange.h), the choice of the tier (host.cpp).
#include <atomic>

#include "exchange.h"
#include "plan.h"
#include "steps.h"

namespace birnn {
namespace cuda {

namespace {

template <class T, class Cell>
BIRNN_KERNEL(most_threads)
forward_spread_kernel(const ForwardChunk a) {
  forward_steps<Words<T>, Cell>(a);
}

template <class T, class Cell>
BIRNN_KERNEL(most_threads)
backward_spread_kernel(const BackwardChunk a) {
  backward_steps<Words<T>, Cell>(a);
}

// The plan with the fewest clocks whose blocks, for all directions, are on the device at the same time; no units if there is none.
// G: gates of the product (1 in backward). A plan in parts is for what does not fit otherwise.
template <class T, int G, class Args>
Plan best_plan(void (*kernel)(Args), const Sizes& n, int columns, int biases) {
  Plan best = {};
  if (!can_be_spread<T>(n)) return best;
  const int H = int(n.H), blocks = multiprocessors() / int(n.D);
  const auto consider = [&](int rows, int parts) {
    Plan p = {};
    p.parts = parts;
    group(p, n, rows);
    if (p.groups > blocks) return;
    p.units = rounded_up((H + blocks / p.groups - 1) / (blocks / p.groups), 2);
    p.splits = (H + p.units - 1) / p.units;
    if (!complete<Words<T>, Chip<T, G, Words<T>::spare>>(p, n, columns, biases) || (best.units && p.clocks >= best.clocks))
      return;
    if (n.D * p.groups * p.splits <= resident_blocks(kernel, threads_of(p), size_t(p.bytes))) best = p;
  };
  for (int rows = 1; rows <= most_rows; rows *= 2) consider(rows, 1);
  for (int rows = 1; rows <= most_rows && !best.units && columns > 1; rows *= 2) consider(rows, columns);
  return best;
}

template <class Chunk>
void launch_spread(void (*kernel)(Chunk), const Chunk& a, const Launch& l, const char* what) {
  launch_together(kernel, grid(a.plan), size_t(a.plan.bytes), l.stream, a, what);
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
      p = backward ? best_plan<T, 1>(&backward_spread_kernel<T, Cell>, n, Cell::gates, 0)
                   : best_plan<T, Cell::gates>(&forward_spread_kernel<T, Cell>, n, 1, 2 * Cell::gates);
    });
  });
  return p;
}

int64_t spread_words(const Sizes& n, bool backward, const Launch& l) {
  int64_t words = 0;
  by_short_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      using T = decltype(zero);
      const int64_t columns = backward ? decltype(cell)::gates : 1;
      words = 2 * n.B * columns * rounded_up(int(n.H), Words<T>::together) / Words<T>::together;
    });
  });
  return words;
}

void forward_spread(const ForwardChunk& a, const Launch& l) {
  by_short_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      using T = decltype(zero);
      using Cell = decltype(cell);
      launch_spread(&forward_spread_kernel<T, Cell>, a, l, "layer, forward spread");
    });
  });
}

void backward_spread(const BackwardChunk& a, const Launch& l) {
  by_short_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      using T = decltype(zero);
      using Cell = decltype(cell);
      launch_spread(&backward_spread_kernel<T, Cell>, a, l, "layer_backward, backward spread");
    });
  });
}

}  // namespace cuda
}  // namespace birnn
