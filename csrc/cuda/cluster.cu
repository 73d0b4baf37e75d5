// The kernels of many blocks where each group of rows is one cluster (G3), whose blocks push their values into each other's
// shared memory: their entries, plans and launches. The hardware places a cluster whole or not at all, so no cooperative launch is
// needed.
// Not here: what a step is (steps.h), the exchange (push.h), the choice of the tier (host.cpp).
#include "plan.h"
#include "push.h"
#include "steps.h"

namespace birnn {
namespace cuda {

namespace {

constexpr int most_blocks = 16;  // of a cluster
constexpr int most_crowd = 4;    // blocks of a multiprocessor

template <class T, class Cell>
BIRNN_KERNEL(most_threads)
forward_cluster_kernel([[maybe_unused]] const ForwardChunk a) {
  if constexpr (has_cluster_code) forward_steps<Pushes<T>, Cell>(a);
}

template <class T, class Cell>
BIRNN_KERNEL(most_threads)
backward_cluster_kernel([[maybe_unused]] const BackwardChunk a) {
  if constexpr (has_cluster_code) backward_steps<Pushes<T>, Cell>(a);
}

// The plan with the fewest clocks whose clusters, for all directions, are on the device at the same time, so that the directions
// do run beside each other; no units if there is none. G: gates of the product (1 in backward). A cluster has 2, 4, 8 or 16 blocks
// (not 1: `st.async` is for clusters of more); some may be left without units, and then have nothing to do. There are no plans in
// parts: what is pushed needs its place at once. Where there are more blocks than multiprocessors, some share one, each with the
// weights of its own group of rows: while one waits for its values, the others multiply.
template <class T, int G, class Args>
Plan best_plan(void (*kernel)(Args), const Sizes& n, int columns, int biases) {
  Plan best = {};
  if (!can_be_spread<T>(n)) return best;
  const int64_t device = multiprocessors();  // (0: not to be told)
  const auto consider = [&](int blocks, int rows) {
    Plan p = {};
    p.parts = 1;
    group(p, n, rows);
    p.splits = blocks;
    p.units = rounded_up((int(n.H) + blocks - 1) / blocks, Pushes<T>::together);
    const int64_t clusters = n.D * p.groups, crowd = device > 0 ? (clusters * blocks + device - 1) / device : 1;
    if (crowd > most_crowd || !complete<Pushes<T>, Chip<T, G, Pushes<T>::spare>>(p, n, columns, biases, int(crowd))) return;
    if (best.units && p.clocks >= best.clocks) return;
    if (clusters <= resident_clusters(kernel, blocks, threads_of(p), size_t(p.bytes))) best = p;
  };
  for (int blocks = 2; blocks <= most_blocks; blocks *= 2) {
    for (int rows = 1; rows <= most_rows; rows *= 2) consider(blocks, rows);
  }
  return best;
}

template <class Chunk>
void launch_cluster(void (*kernel)(Chunk), const Chunk& a, const Launch& l, const char* what) {
  launch_clusters(kernel, grid(a.plan), a.plan.splits, size_t(a.plan.bytes), l.stream, a, what);
}

}  // namespace

Plan cluster_plan(const Sizes& n, bool backward, const Launch& l) {
  Plan p = {};
  by_short_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      using T = decltype(zero);
      using Cell = decltype(cell);
      p = backward ? best_plan<T, 1>(&backward_cluster_kernel<T, Cell>, n, Cell::gates, 0)
                   : best_plan<T, Cell::gates>(&forward_cluster_kernel<T, Cell>, n, 1, 2 * Cell::gates);
    });
  });
  return p;
}

void forward_cluster(const ForwardChunk& a, const Launch& l) {
  by_short_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      launch_cluster(&forward_cluster_kernel<decltype(zero), decltype(cell)>, a, l, "layer, forward cluster");
    });
  });
}

void backward_cluster(const BackwardChunk& a, const Launch& l) {
  by_short_dtype(l.dtype, [&](auto zero) {
    by_cell(l.mode, [&](auto cell) {
      launch_cluster(&backward_cluster_kernel<decltype(zero), decltype(cell)>, a, l, "layer_backward, backward cluster");
    });
  });
}

}  // namespace cuda
}  // namespace birnn
