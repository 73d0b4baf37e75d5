// The table through which the host side calls the kernels: one entry per dtype and mode, one table per instruction set.
// Not here: the choice of the instruction set (dispatch.cpp).
#pragma once

#include "../layer.h"

namespace birnn {

// For tensors of S, which are computed in T = Wide<S>. Sizes of packed and scratch memory are in elements of T; both must be
// aligned to 64 bytes.
template <class S>
struct ForwardKernel {
  typedef Wide<S> T;
  int64_t (*packed_size)(const Sizes&);
  void (*pack)(const Forward<S>&, int dir, T* packed);
  void (*unpack)(const Sizes&, T* packed, const Gradients<S>& weights);
  int64_t (*scratch_size)(const Forward<S>&, const Task&, int64_t l2_bytes);
  void (*run)(const Forward<S>&, const Task&, const Team&, bool packed, T* memory, T* scratch, int64_t l2_bytes);
};

template <class S>
struct BackwardKernel {
  typedef Wide<S> T;
  int64_t (*packed_size)(const Backward<S>&);
  void (*pack)(const Backward<S>&, int dir, T* packed);
  int64_t (*scratch_size)(const Backward<S>&, const Task&, const Team&, int64_t l2_bytes);
  bool (*one_chunk)(const Backward<S>&, const Task&, int64_t l2_bytes);
  // Weight gradients of halves are sums of floats, which go to `sums`; or to `rounded` at once, if that is not null: only with
  // one_chunk, which leaves nothing to add.
  void (*run)(const Backward<S>&, const Task&, const Team&, const Gradients<T>& sums, const Gradients<S>* rounded, bool packed,
              T* memory, T* scratch, int64_t l2_bytes);
};

template <class S>
struct Kernels {
  ForwardKernel<S> forward[MODE_COUNT];
  BackwardKernel<S> backward[MODE_COUNT];
  void (*convert)(const Wide<S>* from, S* to, int64_t n);
  void (*add)(S* to, const S* from, int64_t n);  // to += from
  int64_t weight_bytes;                          // of a packed weight
};

// What the tests of the gate functions call: y[i] = f(x[i]), f = "exp", "sigmoid", "tanh".
template <class T>
using MathHook = void (*)(int function, int64_t n, const T* x, T* y);

struct Table {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  Kernels<float16> f16;
  Kernels<bfloat16> bf16;
  MathHook<float> math_f32;
  MathHook<double> math_f64;

  // Whether products of bfloat16 are made from that itself (operand.h).
  bool multiplies_bfloat16() const { return bf16.weight_bytes < int64_t(sizeof(float)); }

  template <class S>
  const Kernels<S>& kernels() const;
};

template <>
inline const Kernels<float>& Table::kernels<float>() const {
  return f32;
}
template <>
inline const Kernels<double>& Table::kernels<double>() const {
  return f64;
}
template <>
inline const Kernels<float16>& Table::kernels<float16>() const {
  return f16;
}
template <>
inline const Kernels<bfloat16>& Table::kernels<bfloat16>() const {
  return bf16;
}

// The table in use, and a core's second-level cache, from which the sizes of chunks and the sharing of work follow.
const Table& table();
int64_t l2_cache_bytes();

}  // namespace birnn
