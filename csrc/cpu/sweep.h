// What the forward and the backward sweep of a direction share: which rows are at work at which step and where their data lie,
// how many steps make a chunk, and scratch memory.
// Not here: threads (pair.cpp) and arithmetic (forward.inl, backward.inl).
#pragma once

#include "../layer.h"
#include "panels.h"

namespace birnn {
namespace BIRNN_NS {

// Scratch memory handed out front to back. With a null base nothing is handed out and `used` tells how much it would have been.
template <class T>
struct Arena {
  T* base;
  int64_t used = 0;

  T* take(int64_t count) {
    T* p = base ? base + used : nullptr;
    used += round_up(count, 64 / int64_t(sizeof(T)));
    return p;
  }
  template <class A>
  A* take_as(int64_t count) {  // of another type
    return reinterpret_cast<A*>(take(divide_up(count * int64_t(sizeof(A)), int64_t(sizeof(T)))));
  }
};

// Episodes that go through time at once. A row may have as many as it has steps, and each needs states in scratch memory while it
// is at work; a product gains nothing from more rows than this.
constexpr int64_t episodes_at_once = 256;

// The rows of a task, or episodes of rows, sorted by falling length, so that those at work at a step are the first `active(s)`.
struct Rows {
  const int64_t* lengths;  // of the layer, or null
  const int64_t* index;    // [count] rows of the batch
  const Episode* episodes;
  int64_t count, T;
  int dir;

  Rows(const int64_t* lengths, int64_t T, const Task& task)
      : lengths(lengths), index(task.index), episodes(task.episodes), count(task.count), T(T), dir(task.dir) {}

  // What goes through time one after the other: the first batch is the largest and the longest. Whole rows are one batch.
  int64_t batches() const { return episodes && count > 0 ? divide_up(count, episodes_at_once) : 1; }
  Rows batch(int64_t k) const {
    const int64_t size = divide_up(count, batches()), first = k * size;
    Rows some = *this;
    some.index += first, some.count = smaller(size, count - first);
    if (episodes) some.episodes += first;
    return some;
  }

  int64_t begin(int64_t i) const { return episodes ? episodes[i].begin : 0; }
  int64_t length(int64_t i) const { return episodes ? episodes[i].length : lengths ? lengths[index[i]] : T; }
  int64_t steps() const { return count ? length(0) : 0; }
  int64_t total() const {  // rows at work, all steps together
    int64_t sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += length(i);
    return sum;
  }
  int64_t active(int64_t s, int64_t hint) const {  // hint: an upper bound, e.g. active(s - 1)
    while (hint > 0 && length(hint - 1) <= s) --hint;
    return hint;
  }
  // Position in time of step s of row i: the reverse direction starts at the row's own last step.
  int64_t time(int64_t i, int64_t s) const { return begin(i) + (dir == 0 ? s : length(i) - 1 - s); }
  // Whether this is where its row begins in this direction, or ends; and whether it begins with h0.
  bool at_start(int64_t i) const { return !episodes || (dir == 0 ? episodes[i].first : episodes[i].last); }
  bool at_end(int64_t i) const { return !episodes || (dir == 0 ? episodes[i].last : episodes[i].first); }
  bool goes_on(int64_t i) const { return at_start(i) && !(episodes && dir == 0 && episodes[i].fresh); }
  // From here to T there is padding, which one task is to fill.
  int64_t padding(int64_t i) const { return !episodes || episodes[i].last ? begin(i) + length(i) : T; }
};

// Steps [begin, end) of one chunk; `rows` is the sum over its steps of the rows at work.
struct Chunk {
  int64_t begin, end, rows;
};

// The chunk that begins at step `begin`: about `target` rows, at least one step.
BIRNN_INLINE Chunk next_chunk(const Rows& rows, int64_t begin, int64_t target) {
  Chunk c{begin, begin, 0};
  int64_t act = rows.count;
  const int64_t steps = rows.steps();
  while (c.end < steps) {
    act = rows.active(c.end, act);
    if (c.end > begin && c.rows + act > target) break;
    c.rows += act;
    ++c.end;
  }
  return c;
}

// Upper bound of Chunk::rows.
BIRNN_INLINE int64_t chunk_capacity(const Rows& rows, int64_t target) {
  const int64_t all = rows.count * rows.steps();
  const int64_t bound = target > rows.count ? target : rows.count;
  return smaller(all, bound);
}

// Row stride of a private [rows, n] buffer: whole vectors and, where that is a power of two, one cache line more, so that rows
// do not all fall into the same cache sets.
template <class A>
BIRNN_INLINE int64_t padded(int64_t n) {
  const int64_t p = round_up(n, lanes<Wide<A>>), line = 64 / int64_t(sizeof(A));
  return p + (p % (4 * line) == 0 ? line : 0);
}

// State [rows.count, width] of direction `dir` in a padded buffer; null reads as zeros, and so does what an episode does not
// begin with, or end with.
template <class S, class A>
BIRNN_INLINE void read_state(const Rows& rows, const S* state, int64_t B, int64_t width, A* to, int64_t ld,
                             bool (Rows::*has)(int64_t) const = &Rows::goes_on) {
  for (int64_t i = 0; i < rows.count; ++i) {
    zero(to + i * ld, ld);
    if (state && (rows.*has)(i)) copy(to + i * ld, state + (rows.dir * B + rows.index[i]) * width, width);
  }
}

}  // namespace BIRNN_NS
}  // namespace birnn
