// The arguments of the ops, checked: what ops.cpp hands to the backend of each device.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>

#include "layer.h"

namespace birnn {

using OptionalTensor = std::optional<at::Tensor>;

// One layer's tensors; an absent one is undefined. Weights per direction, n.D of them. `lengths` is [B], or [B, T] with the
// number of the episode that each step belongs to: from 1 on, or from 2 on where the first one does not go on from h0; 0 is
// beyond the end of the row.
struct LayerTensors {
  at::Tensor input, h0, c0, lengths;
  at::Tensor w_ih[2], w_hh[2], b_ih[2], b_hh[2], w_hr[2];
  at::Tensor packed[2];  // in their place, on the CPU (cpu/prepacked.h)
  Mode mode;
  bool batch_first;
  Sizes n;
};

// What all ops begin with, as parameters and as the arguments that hand them on; in the order of the schema (schema.h).
#define BIRNN_LAYER_PARAMETERS                                                                                    \
  const at::Tensor &input, const OptionalTensor &h0, const OptionalTensor &c0, const OptionalTensor &lengths,     \
      const at::Tensor &w_ih, const at::Tensor &w_hh, const OptionalTensor &b_ih, const OptionalTensor &b_hh,     \
      const OptionalTensor &w_hr, const OptionalTensor &w_ih_reverse, const OptionalTensor &w_hh_reverse,         \
      const OptionalTensor &b_ih_reverse, const OptionalTensor &b_hh_reverse, const OptionalTensor &w_hr_reverse, \
      std::string_view mode, bool batch_first
#define BIRNN_LAYER_ARGUMENTS                                                                                                 \
  input, h0, c0, lengths, w_ih, w_hh, b_ih, b_hh, w_hr, w_ih_reverse, w_hh_reverse, b_ih_reverse, b_hh_reverse, w_hr_reverse, \
      mode, batch_first

// Throws (naming the argument, what came, what was expected) unless there is such a mode.
Mode mode_of(std::string_view name);

// Likewise unless every rank, size, dtype and device fits.
LayerTensors check_layer(BIRNN_LAYER_PARAMETERS);

// The last checks of check_layer: those of the states and lengths of a layer that has its sizes and its input.
void check_states(const LayerTensors& layer);

// As check_layer, for the tensors that layer_into writes the final states to, from row `row` on.
void check_into(const LayerTensors& layer, const at::Tensor& h_n, const at::Tensor& c_n, int64_t row);

// As check_layer, for what the backward op gets besides. grad_c_n is [D, B, H], or [D, T + 1, B, H]: the gradients of c after
// every step, then that of c_n.
void check_backward(const LayerTensors& layer, const at::Tensor& grad_output, const at::Tensor& grad_h_n,
                    const at::Tensor& grad_c_n, const at::Tensor& output, const at::Tensor& saved);

// Shapes of the results, for every device.
//   output [T, B, D*P] or [B, T, D*P]; saved [D, T, B, S, H], without elements in inference
std::vector<int64_t> output_shape(const LayerTensors& layer);
std::vector<int64_t> saved_shape(const LayerTensors& layer);

}  // namespace birnn
