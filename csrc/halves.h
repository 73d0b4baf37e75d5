// The 16-bit floats as the CPU kernels get them, which is as bits, and the type in which numbers are computed.
// Not here: arithmetic and conversions (cpu/simd_halves.h).
#pragma once

#include <cstdint>

namespace birnn {

struct float16 {
  uint16_t bits;
};
struct bfloat16 {  // the upper half of a float
  uint16_t bits;
};

template <class S>
struct ComputedIn {
  typedef S Type;
};
template <>
struct ComputedIn<float16> {
  typedef float Type;
};
template <>
struct ComputedIn<bfloat16> {
  typedef float Type;
};
// What tensors of S are computed in: float for the halves, else S itself.
template <class S>
using Wide = typename ComputedIn<S>::Type;

}  // namespace birnn
