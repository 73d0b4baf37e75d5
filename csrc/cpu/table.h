// The table through which the host side calls the kernels: one entry per dtype and mode, one table per instruction set.
// Not here: the choice of the instruction set (dispatch.cpp).
#pragma once

#include "../layer.h"

namespace birnn {

// Sizes of packed and scratch memory are in elements of T; both must be aligned to 64 bytes.
template <class T>
struct ForwardKernel {
  int64_t (*packed_size)(const Sizes&);
  void (*pack)(const Forward<T>&, int dir, T* packed);
  void (*unpack)(const Sizes&, T* packed, const Gradients<T>& weights);
  int64_t (*scratch_size)(const Forward<T>&, const Task&, int64_t l2_bytes);
  void (*run)(const Forward<T>&, const Task&, const Team&, bool packed, T* memory, T* scratch, int64_t l2_bytes);
};

template <class T>
struct BackwardKernel {
  int64_t (*packed_size)(const Backward<T>&);
  void (*pack)(const Backward<T>&, int dir, T* packed);
  int64_t (*scratch_size)(const Backward<T>&, const Task&, const Team&, int64_t l2_bytes);
  void (*run)(const Backward<T>&, const Task&, const Team&, const Gradients<T>&, bool packed, T* memory, T* scratch,
              int64_t l2_bytes);
};

template <class T>
struct Kernels {
  ForwardKernel<T> forward[MODE_COUNT];
  BackwardKernel<T> backward[MODE_COUNT];
};

// What the tests of the gate functions call: y[i] = f(x[i]), f = "exp", "sigmoid", "tanh".
template <class T>
using MathHook = void (*)(int function, int64_t n, const T* x, T* y);

struct Table {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
  MathHook<float> math_f32;
  MathHook<double> math_f64;

  template <class T>
  const Kernels<T>& kernels() const;
};

template <>
inline const Kernels<float>& Table::kernels<float>() const {
  return f32;
}
template <>
inline const Kernels<double>& Table::kernels<double>() const {
  return f64;
}

// The table in use, and a core's second-level cache, from which the sizes of chunks and the sharing of work follow.
const Table& table();
int64_t l2_cache_bytes();

}  // namespace birnn
