// Weights that were packed once for many calls: a tensor of bytes.
//
//   [ what they are, 64 bytes | the memory that ForwardKernel::pack fills ]
//
// Not here: how they are packed (pack.h), the ops (prepacked.cpp).
#pragma once

#include <ATen/core/Tensor.h>

#include "../layer.h"

namespace birnn {

struct PackedHeader {
  char magic[8];       // "birnn_2", the number of the format
  char isa[16];        // whose vectors they are laid out for
  int32_t mode, type;  // at::ScalarType of the weights, and of the tensors of a layer that has them
  int64_t I, H, P;
  uint8_t projected, narrow, bias;
};
constexpr int64_t header_bytes = 64;
static_assert(sizeof(PackedHeader) <= header_bytes, "");

// What is behind the header; null for no tensor.
template <class T>
T* panels_of(const at::Tensor& packed) {
  return packed.defined() ? reinterpret_cast<T*>(const_cast<uint8_t*>(packed.const_data_ptr<uint8_t>()) + header_bytes)
                          : nullptr;
}

// Runs a layer whose tensors are checked; h_n and c_n are contiguous and get the final states at their beginning. (layer.cpp)
std::tuple<at::Tensor, at::Tensor> run_layer(struct LayerTensors& l, bool train, const at::Tensor& h_n, const at::Tensor& c_n);

}  // namespace birnn
