// What the host side asks of the kernels, as plain sizes, pointers and strides: the seam between layer.cpp, which knows torch, and
// the .cu files, which do not. All pointers are device memory, all launches are asynchronous on `stream`.
// Not here: matrix products (product.h) and streams (pair.h).
//
// What has run and what has not: these kernels and the host side (forward.cpp, backward.cpp, host.cpp) have run on the CPU through
// the shim in tests/shim, against the reference and under ThreadSanitizer; streams (pair.cpp), products (product.cpp) and the seam
// (seam.h) have been compiled, linked and loaded for all architectures of setup.py. NOTHING HERE HAS RUN ON A GPU YET. The first
// time: `make gpu`.
//
// Types: `T` is the dtype of the layer's tensors; `A` is what is accumulated in: double for double, float for all others. Gate
// pre-activations, carries and the cell state between steps are A, everything a caller sees is T.
//
// Time. A direction walks through absolute time t: direction 0 from 0 up, direction 1 from T-1 down, backward the other way
// round. Row b is at work where t < L[b]; elsewhere its state stands still, its output is 0, and its inputs are not read. So no
// row needs an index of its own, and lengths are never read by the host. A length outside 0..T counts as the nearer of the two.
#pragma once

#include <string>

#include "../layer.h"

namespace birnn {
namespace cuda {

enum class Dtype { F32, F64, F16, BF16 };

// Which instantiation runs, and where.
struct Launch {
  Dtype dtype;
  Mode mode;
  void* stream;
};

// How one direction is spread over blocks (chip.h, plan.h).
struct Plan {
  int rows, groups;   // of the batch: so many in a group, so many groups
  int units, splits;  // of the hidden: so many in a block, so many blocks to a group; no units: it does not fit
  int slices;         // threads to a unit, 8 to 32
  int parts, length;  // of the summed index: how many, and their length, padded
  int vectors;        // that a block has room for: slots that take turns
  // What follows from these (chip.h); here, since a kernel's parameters cost it no registers.
  int deep, held, left;    // steps of the sum; in registers of a thread, and in shared memory (of a tile), of a part
  int tiles, shares;       // halves: of the gates' units, and of their sums
  int stride, sum_stride;  // of a vector and, halves, of sums
  int64_t bytes;           // of shared memory, of a block
  int64_t clocks;          // of a step, by an estimate
};

// Where the blocks of one direction hand each other what they have computed (exchange.h, push.h).
struct Exchange {
  uint64_t* words;   // spread only: spread_words(...) of them; zero when the call begins
  uint64_t* flag;    // a word behind them: not zero once a block has given up
  uint32_t* alarm;   // host memory: the same for the whole process
  int64_t patience;  // looks at a word before a block gives up
};

// One direction of the forward pass over times [t_begin, t_end). Pointers are those of the direction.
struct ForwardChunk {
  Sizes n;
  int dir;
  int64_t t_begin, t_end;
  const int64_t* lengths;   // [B] or null: all are T
  const void* pre;          // A [t_end - t_begin, B, G*H], W_ih x
  const void* rec;          // A [B, G*H], W_hh h of the step at hand; stepwise only
  const void* w_hh;         // T [G*H, H]; not stepwise
  const void *b_ih, *b_hh;  // T [G*H] or null
  void* h;                  // T [B, P], the state, in place
  void* c;                  // A [B, H] or null, the cell state, in place
  void* u;                  // T [B, H], h before its projection, or null
  const void* projected;    // A [B, P], W_hr u of the step at hand, or null
  void* y;                  // T, element (t, b, p) at y[t * y_t + b * y_b + p]
  int64_t y_t, y_b;
  void* saved;        // T [T, B, S, H] or null
  Plan plan;          // spread and cluster only
  Exchange exchange;  // spread and cluster only
};

// One direction of the backward pass over times [t_begin, t_end). With t' the time that comes before t in the forward pass:
struct BackwardChunk {
  Sizes n;
  int dir;
  int64_t t_begin, t_end;
  const int64_t* lengths;
  const void* saved;  // T [T, B, S, H] or null where nothing is saved
  const void* y;      // T, strided as in ForwardChunk
  int64_t y_t, y_b;
  const void *h0, *c0;  // T [B, P], [B, H], or null for zeros
  const void* dy;       // T, strided, or null for zeros
  int64_t dy_t, dy_b;
  const void* w_hh;   // T [G*H, H]; not stepwise
  void* carry;        // A [B, P], what reaches h_{t'} from later steps, but for `rec`; in place
  const void* rec;    // A [B, P], dg W_hh of the step that was done last; stepwise only, else null
  void* dc;           // A [B, H] or null, in place
  void* dg;           // T [t_end - t_begin, B, columns*H], gate gradients, zero where a row is not at work
  void* dq;           // T [t_end - t_begin, B, P], gradient of W_hr u, or null
  const void* du;     // A [B, H], dq W_hr of the step at hand, or null
  Plan plan;          // spread and cluster only
  Exchange exchange;  // spread and cluster only
};

// ---- stepwise (G0): one step at time t, between two matrix products ----
void forward_step(const ForwardChunk& a, int64_t t, const Launch& l);       // rec, pre, h, c -> h, c, y, saved; or u, c, saved
void forward_project(const ForwardChunk& a, int64_t t, const Launch& l);    // projected -> h, y
void backward_project(const BackwardChunk& a, int64_t t, const Launch& l);  // carry, rec, dy -> dq, carry
void backward_step(const BackwardChunk& a, int64_t t, const Launch& l);     // carry, rec, dy or du -> dg, carry, dc

// ---- block (G1): all steps of the chunk in one launch, recurrent weights in shared memory; no projection ----
// Whether the blocks of both directions fit on the present device all at once.
bool block_fits(const Sizes& n, bool backward, const Launch& l);
void forward_block(const ForwardChunk& a, const Launch& l);
void backward_block(const BackwardChunk& a, const Launch& l);

// ---- spread (G2): all steps of the chunk in one launch, the units of a direction spread over many blocks; no projection ----
// The best plan by which the blocks of both directions fit on the present device all at once; without units if there is none.
Plan spread_plan(const Sizes& n, bool backward, const Launch& l);
int64_t spread_words(const Sizes& n, bool backward, const Launch& l);  // of 8 bytes, for one direction
void forward_spread(const ForwardChunk& a, const Launch& l);
void backward_spread(const BackwardChunk& a, const Launch& l);
uint32_t* alarm();  // what is not zero once a block has given up, of this tier or the next
bool take_alarm();  // whether that has happened since it was last asked

// ---- cluster (G3): the same, where a group of rows is one cluster of blocks; from sm_90, no projection ----
Plan cluster_plan(const Sizes& n, bool backward, const Launch& l);
void forward_cluster(const ForwardChunk& a, const Launch& l);
void backward_cluster(const BackwardChunk& a, const Launch& l);

// ---- around the recurrence ----
// h and c before the first step: T or A from T, zeros from null.
void start(const void* from, void* to, bool wide, int64_t count, const Launch& l);  // to: A if wide, else T
// Results after the last step: T from A. With `rec` (then `width` columns a row): its sum with `from`, where the row was at work
// at time `last`.
struct Finish {
  const void* from;  // A [B, width]
  const void* rec;   // A [B, width] or null
  void* to;          // T [B, width]
  int64_t B, width, T, last;
  const int64_t* lengths;
};
void finish(const Finish& a, const Launch& l);

// Rows of a chunk, side by side: [t_end - t_begin, B, width]. Kind::copy: of a strided tensor; before: of the state before each
// step, which is y one step earlier, or h0; hidden: h before its projection, from the saved gates. Zero where not at work.
enum class Rows { copy, before, hidden };
struct Gather {
  Rows kind;
  Sizes n;
  int dir;
  int64_t t_begin, t_end, width;
  const int64_t* lengths;
  const void* from;  // T: x, y, or saved
  int64_t from_t, from_b;
  const void* h0;  // T [B, P] or null; `before` only
  void* to;        // T
};
void gather(const Gather& a, const Launch& l);

// The other way: rows of a chunk into a strided tensor, zero where not at work.
struct Scatter {
  int64_t B, T, t_begin, t_end, width;
  const int64_t* lengths;
  const void* from;  // A [t_end - t_begin, B, width]
  void* to;          // T, element (t, b, i) at to[t * to_t + b * to_b + i]
  int64_t to_t, to_b;
};
void scatter(const Scatter& a, const Launch& l);

// Tells this library's copy of the CUDA runtime which device is current; throws with the reason where there is none.
void use_device(int index);

// Whether work given to the stream becomes part of a CUDA graph.
bool capturing(void* stream);

}  // namespace cuda
}  // namespace birnn
