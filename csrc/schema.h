// The schemas of the ops, as torch.library takes them.
#pragma once

#define BIRNN_TENSORS_SCHEMA                                             \
  "Tensor input, Tensor? h0, Tensor? c0, Tensor? lengths, "              \
  "Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, " \
  "Tensor? w_ih_reverse, Tensor? w_hh_reverse, Tensor? b_ih_reverse, Tensor? b_hh_reverse, Tensor? w_hr_reverse, "

#define BIRNN_LAYER_SCHEMA      \
  "layer(" BIRNN_TENSORS_SCHEMA \
  "str mode, bool batch_first, bool train) -> (Tensor output, Tensor h_n, Tensor c_n, Tensor saved)"

// The same with the final states written to rows [row, row + D) of tensors that hold those of several layers.
// (cell_mode: torch's functionalization of such ops has a parameter `mode` of its own, as of 2.13.)
#define BIRNN_INTO_SCHEMA            \
  "layer_into(" BIRNN_TENSORS_SCHEMA \
  "str cell_mode, bool batch_first, bool train, Tensor(a!) h_n, Tensor(b!)? c_n, int row) -> (Tensor output, Tensor saved)"

// The part of layer_backward that goes through time: gradients of the gates' pre-activations [D, T, B, C, H], C = Cell::columns,
// from which those of weights and input follow by products.
#define BIRNN_GATES_BACKWARD_SCHEMA                                                                     \
  "layer_gates_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, " BIRNN_TENSORS_SCHEMA \
  "str mode, bool batch_first, Tensor output, Tensor saved) -> (Tensor grad_gates, Tensor grad_h0, Tensor grad_c0)"

#define BIRNN_BACKWARD_SCHEMA                                                                                         \
  "layer_backward(Tensor? grad_output, Tensor? grad_h_n, Tensor? grad_c_n, " BIRNN_TENSORS_SCHEMA                     \
  "str mode, bool batch_first, Tensor output, Tensor saved, bool need_input, bool need_state, bool need_weights) -> " \
  "(Tensor grad_input, Tensor grad_h0, Tensor grad_c0, "                                                              \
  "Tensor grad_w_ih, Tensor grad_w_hh, Tensor grad_b_ih, Tensor grad_b_hh, Tensor grad_w_hr, "                        \
  "Tensor grad_w_ih_reverse, Tensor grad_w_hh_reverse, Tensor grad_b_ih_reverse, Tensor grad_b_hh_reverse, "          \
  "Tensor grad_w_hr_reverse)"

// Weights packed once for many calls; CPU only: float32, float64 and, on a processor that multiplies it, bfloat16. `narrow`: float32
// weights as bfloat16, two to a word. unpack_weights gives them back, as rounded; what there was none of has no elements.
#define BIRNN_PACK_SCHEMA                                                                       \
  "pack_weights(Tensor w_ih, Tensor w_hh, Tensor? b_ih, Tensor? b_hh, Tensor? w_hr, str mode, " \
  "bool narrow) -> Tensor packed"
#define BIRNN_UNPACK_SCHEMA "unpack_weights(Tensor packed) -> (Tensor w_ih, Tensor w_hh, Tensor b_ih, Tensor b_hh, Tensor w_hr)"
#define BIRNN_PACKED_LAYER_SCHEMA                                                                           \
  "packed_layer(Tensor input, Tensor? h0, Tensor? c0, Tensor? lengths, Tensor packed, "                     \
  "Tensor? packed_reverse, str mode, bool batch_first, int hidden_size, int proj_size) -> (Tensor output, " \
  "Tensor h_n, Tensor c_n)"
