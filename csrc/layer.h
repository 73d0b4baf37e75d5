// One recurrent layer as plain sizes, pointers and strides: what the host side of the op hands to the kernels.
// Not here: torch, and anything that owns memory. Every pointer carries its shape; T is the number of steps, B of rows, I of
// input features, H of hidden units, P of output features per direction (H, or proj_size), D of directions, G of gates.
//
//   output, both directions in one tensor          h_n (and c_n)                 rows of unequal length, L[b] steps
//        <----- P -----><----- P ----->                <--- P --->                        t=0 ... L[b]-1 ... T-1
//   t,b [ direction 0  | direction 1   ]           d=0 [ b=0..B-1 ]             d=0, step s:  t = s
//                                                  d=1 [ b=0..B-1 ]             d=1, step s:  t = L[b]-1-s
//                                                                               output is 0 from t = L[b] on
#pragma once

#include <cstdint>

#include "halves.h"

namespace birnn {

// Rows of steps that a chunk of the backward pass has at most, but at least one step.
constexpr int64_t most_rows_of_chunk = 512;

enum Mode { RNN_TANH, RNN_RELU, LSTM, GRU, MODE_COUNT };

struct Sizes {
  int64_t T, B, I, H, P, D;
  bool projected;       // P is proj_size
  bool narrow = false;  // weights are packed as bfloat16 (cpu/tile.h)
};

template <class T>
struct Weights {
  const T* w_ih;  // [G*H, I]
  const T* w_hh;  // [G*H, P]
  const T* b_ih;  // [G*H] or null
  const T* b_hh;  // [G*H] or null
  const T* w_hr;  // [P, H] or null
};

template <class T>
struct Gradients {  // or room for weights
  T* w_ih;          // as Weights; b_* and w_hr null where the weight is
  T* w_hh;
  T* b_ih;
  T* b_hh;
  T* w_hr;
};

// Features are contiguous everywhere; the strides of time and batch are free, which is all that batch_first needs.
template <class T>
struct Forward {
  Sizes n;
  const T* x;  // [T, B, I], strides x_t, x_b
  int64_t x_t, x_b;
  const T* h0;             // [D, B, P] or null for zeros
  const T* c0;             // [D, B, H] or null for zeros
  const int64_t* lengths;  // [B], each 0..T, or null: all are T
  Weights<T> w[2];
  Wide<T>* packed[2];  // on the CPU: the weights as they were packed before this call, which has no `w` then; or null
  T* y;                // [T, B, D*P], strides y_t, y_b
  int64_t y_t, y_b;
  T* h_n;    // [D, B, P]
  T* c_n;    // [D, B, H] or null
  T* saved;  // [D, T, B, S, H], S = Cell::saved, or null: inference
};

template <class T>
struct Backward {
  Forward<T> f;  // what the forward pass was called with; y and saved hold its results
  const T* dy;   // [T, B, D*P], strides dy_t, dy_b, or null for zeros
  int64_t dy_t, dy_b;
  const T* dh_n;  // [D, B, P] or null for zeros
  const T* dc_n;  // [D, B, H] or null for zeros; with every_c [D, T + 1, B, H]: those of c after every step, then that of c_n
  bool every_c;
  // One per direction or the same for both, which then is their sum (rows must be whole and equally long, and direction 0 first
  // where the directions do not run at the same time); [T, B, I], strides dx_t, dx_b, or null: not wanted.
  T* dx[2];
  int64_t dx_t, dx_b;
  T* dh0;    // [D, B, P] or null: not wanted, nor is dc0
  T* dc0;    // [D, B, H] or null
  T* gates;  // [D, T, B, C, H], C = Cell::columns, or null: not wanted
  bool want_weights;
};

// A row's steps [begin, begin + length), which the kernels take for a row of its own: what lies between two resets.
struct Episode {
  int64_t row, begin, length;
  bool first, last;  // of its row
  bool fresh;        // the row's first episode, and yet it does not go on from h0 (forwards)
};

// One direction over some rows of the batch: what one thread does, or a team of threads, each with its share of the units.
struct Task {
  int dir;
  const int64_t* index;  // [count] rows of the batch, longest first
  int64_t count;
  const Episode* episodes;  // [count], the part of its row that each is, or null: rows are whole
};

class Barrier;   // of a team
class Crossing;  // of the two teams that take the same rows in both directions at the same time

// How they wait (barrier.h): by pointer, since what stands in a header would be compiled for every instruction set and linked
// from any.
struct Waiting {
  void (*for_team)(Barrier&);
  void (*tell_other)(Crossing&, int dir);
  void (*for_other)(Crossing&, int dir);
};

// A thread's place in its team. All members run the same program on the same memory, each on its own panels of every matrix,
// and wait for each other where one is about to read what another has written.
struct Team {
  int rank = 0, size = 1;
  const Waiting* waiting = nullptr;
  Barrier* barrier = nullptr;
  Crossing* crossing = nullptr;  // null: the directions do not meet

  void wait() const {
    if (size > 1) waiting->for_team(*barrier);
  }
  // To the team of the other direction, which waits until all members have: what it is to add to is written.
  void tell_other(int dir) const {
    if (crossing) waiting->tell_other(*crossing, dir);
  }
  void wait_for_other(int dir) const {
    if (crossing) waiting->for_other(*crossing, dir);
  }
  bool mine(int64_t i) const { return i % size == rank; }
  int64_t begin(int64_t count) const { return count * rank / size; }  // this member's share of 0 ... count - 1
  int64_t end(int64_t count) const { return count * (rank + 1) / size; }
};

}  // namespace birnn
