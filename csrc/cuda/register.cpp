// Registers the CUDA backend with torch's dispatcher. Without a GPU, or with a torch for the CPU alone, nobody ever calls it.
#include <torch/library.h>

#include "host.h"

TORCH_LIBRARY_FRAGMENT(birnn_ext, m) {
  m.def(BIRNN_TIER_SCHEMA, &birnn::cuda::describe_tier);
  m.def(BIRNN_FORCE_SCHEMA, &birnn::cuda::force_tier);
}

TORCH_LIBRARY_IMPL(birnn_ext, CUDA, m) {
  m.impl("layer", &birnn::cuda::layer);
  m.impl("layer_into", &birnn::cuda::layer_into);
  m.impl("layer_backward", &birnn::cuda::layer_backward);
}
