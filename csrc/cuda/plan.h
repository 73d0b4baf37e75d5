// What the choice of a plan has in common for both exchanges between blocks (G2, G3). Host side.
// Not here: which plans come into question (spread.cu, cluster.cu), and the choice between kinds of kernels (host.cpp).
#pragma once

#include "chip.h"

namespace birnn {
namespace cuda {

constexpr int most_threads = 512, most_units = 64, most_hidden = 1024;

// Whether there are kernels of many blocks for a layer at all.
template <class T>
bool can_be_spread(const Sizes& n) {
  return !n.projected && n.H <= most_hidden && n.B >= 1 && n.T < INT32_MAX && has_tiles_of<T>();
}

// Groups of so many rows.
inline void group(Plan& p, const Sizes& n, int rows) {
  p.rows = n.B < rows ? int(n.B) : rows;
  p.groups = int((n.B + p.rows - 1) / p.rows);
}

// What follows from rows, units, splits and parts; false where a block would have too many threads. OnChip: its product
// (chip.h), columns: values that a unit hands over (1 in forward), biases: that it has (none in backward), crowd: blocks that share a
// multiprocessor, and so its registers. One of them multiplies while another waits; but their products take turns, and so do the
// values on their way in. The clocks are an estimate; nobody has measured a step.
template <class Link, class OnChip>
bool complete(Plan& p, const Sizes& n, int columns, int biases, int crowd = 1) {
  const int threads = most_threads / crowd;
  if (p.units > most_units / crowd || p.units * p.rows > threads) return false;
  for (p.slices = 32; p.slices * p.units > threads;) p.slices /= 2;
  const int values = columns * rounded_up(int(n.H), Link::together);
  p.length = OnChip::padded(values / p.parts, p);
  p.vectors = Link::vectors;
  OnChip::complete(p);
  p.bytes = int64_t(Link::shared_bytes) + OnChip::bytes(p) + biases * p.units * int64_t(sizeof(float));
  const int64_t product = OnChip::clocks(p), transfer = Link::transfer(int64_t(p.rows) * values);
  const int64_t alone = product + Link::latency + transfer, together = crowd * (product > transfer ? product : transfer);
  p.clocks = alone > together ? alone : together;
  return true;
}

inline Grid grid(const Plan& p) { return {int64_t(p.groups) * p.splits, 1, threads_of(p), 1}; }

}  // namespace cuda
}  // namespace birnn
