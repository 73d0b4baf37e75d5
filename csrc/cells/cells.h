// The cells: one time step of one hidden unit, as equations on values in registers. This folder is the only place where the
// equations stand; the CPU and the CUDA kernels instantiate the same text.
//
// Not here: pointers, strides, time, batch, weights. A cell is a stateless struct with
//
//   name                   as in torch.nn: "RNN_TANH", "RNN_RELU", "LSTM", "GRU"
//   gates                  G, rows of weight_ih / H, in torch's order
//   states                 1 (h) or 2 (h and c); state 0 is the output
//   saved                  values per unit and step that the forward pass keeps for the backward pass; with two states, the
//                          last of them is s_new[1]
//   columns                distinct gate gradients per unit; column x_column(g) is the gradient of the input side of gate g,
//                          h_column(g) of its recurrent side. Both maps are onto consecutive columns, so that each side is
//                          one matrix whose rows are contiguous in memory.
//   reads_h                whether backward reads h itself (s[0] or h_new), or forward does; such a cell cannot have a projection
//   forward (x[G], h[G], s[states])                              -> s_new[states], save[saved]
//   hidden  (save[saved])                                        -> h', only where a projection follows (not reads_h)
//   backward(save[saved], s[states], h_new, ds_new[states])      -> d[columns], ds[states]
//
// with x = W_ih input + b_ih and h = W_hh h_{t-1} + b_hh for one unit. `ds` holds only what flows back to the previous state
// directly; what flows through W_hh is added by the sweep. V is a vector of the CPU or a scalar; Math<V> has sigmoid and tanh.
//
// To add a pointwise cell: write its header, include it below, add it to BIRNN_FOR_EACH_CELL, and add its step to
// birnn_ext/reference.py.
#pragma once

#if defined(__CUDACC__)
#define BIRNN_CELL static __host__ __device__ __forceinline__
#else
#define BIRNN_CELL static inline __attribute__((always_inline))
#endif

#include "gru.h"
#include "lstm.h"
#include "rnn.h"

// X(cell, mode): the order of the modes is that of `enum Mode` in layer.h.
#define BIRNN_FOR_EACH_CELL(X) \
  X(RnnTanh, RNN_TANH)         \
  X(RnnRelu, RNN_RELU)         \
  X(Lstm, LSTM)                \
  X(Gru, GRU)
