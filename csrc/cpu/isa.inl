// Everything that is compiled once per instruction set, ending in the tables of its kernels. The including file has set the
// target, BIRNN_NS, BIRNN_VECTOR_BYTES and BIRNN_VECTOR_REGISTERS, and BIRNN_F16C where the target has that; with BIRNN_BF16_DOT only
// the kernels for bfloat16 are compiled. No torch and nothing of the STL but types below this line.
#include "simd_math.h"
// (Math before the cells, which call it.)
#include "../cells/cells.h"
#include "backward.inl"
#include "forward.inl"
#include "table.h"

namespace birnn {
namespace BIRNN_NS {

template <class S, class Cell>
constexpr ForwardKernel<S> forward_kernel() {
  using K = ForwardSweep<S, Cell>;
  return {&K::packed_size, &K::pack, &K::unpack, &K::scratch_size, &K::run};
}

template <class S, class Cell>
constexpr BackwardKernel<S> backward_kernel() {
  using K = BackwardSweep<S, Cell>;
  return {&K::packed_size, &K::pack, &K::scratch_size, &K::one_chunk, &K::run};
}

template <class S>
static void convert(const Wide<S>* from, S* to, int64_t n) {
  copy(to, from, n);
}

template <class S>
static void add(S* to, const S* from, int64_t n) {
  for (int64_t i = 0; i < n; i += lanes<Wide<S>>) {
    store_some(to + i, load_some(to + i, n - i) + load_some(from + i, n - i), n - i);
  }
}

#define BIRNN_FORWARD(cell, mode) forward_kernel<S, cell>(),
#define BIRNN_BACKWARD(cell, mode) backward_kernel<S, cell>(),
template <class S>
constexpr Kernels<S> all_kernels() {
  return {{BIRNN_FOR_EACH_CELL(BIRNN_FORWARD)},
          {BIRNN_FOR_EACH_CELL(BIRNN_BACKWARD)},
          &convert<S>,
          &add<S>,
          sizeof(Wide<S>) / (paired<Operand<S>> ? 2 : 1)};
}
#undef BIRNN_FORWARD
#undef BIRNN_BACKWARD

#if defined(BIRNN_BF16_DOT)
extern const Kernels<bfloat16> kernels;
const Kernels<bfloat16> kernels = all_kernels<bfloat16>();
#else
template <class T>
static void math_hook(int function, int64_t n, const T* x, T* y) {
  for (int64_t i = 0; i < n; i += lanes<T>) {
    const Vec<T> v = load_some(x + i, n - i);
    const Vec<T> r = function == 0 ? Math<Vec<T>>::exp(v) : function == 1 ? Math<Vec<T>>::sigmoid(v) : Math<Vec<T>>::tanh(v);
    store_some(y + i, r, n - i);
  }
}

extern const Table kernels;
const Table kernels = {BIRNN_ISA_NAME,          all_kernels<float>(), all_kernels<double>(), all_kernels<float16>(),
                       all_kernels<bfloat16>(), &math_hook<float>,    &math_hook<double>};
#endif

}  // namespace BIRNN_NS
}  // namespace birnn
