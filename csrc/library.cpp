// Defines the library torch.ops.birnn_ext with its ops. What computes them is registered per device (cpu/layer.cpp,
// cuda/register.cpp); derivatives, fake tensors and batching rules are in birnn_ext/ops.py.
#include <torch/library.h>

#include "schema.h"

TORCH_LIBRARY(birnn_ext, m) {
  m.def(BIRNN_LAYER_SCHEMA);
  m.def(BIRNN_INTO_SCHEMA);
  m.def(BIRNN_BACKWARD_SCHEMA);
  m.def(BIRNN_GATES_BACKWARD_SCHEMA);
  m.def(BIRNN_PACK_SCHEMA);
  m.def(BIRNN_UNPACK_SCHEMA);
  m.def(BIRNN_PACKED_LAYER_SCHEMA);
}
