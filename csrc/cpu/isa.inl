// Everything that is compiled once per instruction set, ending in the table of its kernels. The including file has set the
// target, BIRNN_NS, BIRNN_VECTOR_BYTES and BIRNN_VECTOR_REGISTERS. No torch and no STL below this line.
#include "simd_math.h"
// (Math before the cells, which call it.)
#include "../cells/cells.h"
#include "backward.inl"
#include "forward.inl"
#include "table.h"

namespace birnn {
namespace BIRNN_NS {

template <class T>
static void math_hook(int function, int64_t n, const T* x, T* y) {
  for (int64_t i = 0; i < n; i += lanes<T>) {
    const Vec<T> v = load_some(x + i, n - i);
    const Vec<T> r = function == 0 ? Math<Vec<T>>::exp(v) : function == 1 ? Math<Vec<T>>::sigmoid(v) : Math<Vec<T>>::tanh(v);
    store_some(y + i, r, n - i);
  }
}

template <class T, class Cell>
constexpr ForwardKernel<T> forward_kernel() {
  using K = ForwardSweep<T, Cell>;
  return {&K::packed_size, &K::pack, &K::unpack, &K::scratch_size, &K::run};
}

template <class T, class Cell>
constexpr BackwardKernel<T> backward_kernel() {
  using K = BackwardSweep<T, Cell>;
  return {&K::packed_size, &K::pack, &K::scratch_size, &K::run};
}

#define BIRNN_FORWARD(cell, mode) forward_kernel<T, cell>(),
#define BIRNN_BACKWARD(cell, mode) backward_kernel<T, cell>(),
template <class T>
constexpr Kernels<T> all_kernels() {
  return {{BIRNN_FOR_EACH_CELL(BIRNN_FORWARD)}, {BIRNN_FOR_EACH_CELL(BIRNN_BACKWARD)}};
}
#undef BIRNN_FORWARD
#undef BIRNN_BACKWARD

extern const Table kernels;
const Table kernels = {BIRNN_ISA_NAME, all_kernels<float>(), all_kernels<double>(), &math_hook<float>, &math_hook<double>};

}  // namespace BIRNN_NS
}  // namespace birnn
