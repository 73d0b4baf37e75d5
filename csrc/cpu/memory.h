// Blocks of memory that are used again. malloc gives blocks above 32 MiB back to the system when they are freed, and the end of
// its heap when 128 KiB are free there, or twice the largest block that it has given back before; a training step would fault in
// the pages of its saved gates and gradients anew (measured: up to a quarter of the step).
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Allocator.h>

namespace birnn {

// Memory of at least `bytes`, aligned to 64; blocks of 128 KiB and more come from, and return to, a list of free ones of at most
// 256 MiB.
c10::DataPtr allocate(size_t bytes);

// A contiguous tensor without values in such memory; `like` gives dtype.
at::Tensor empty_reusable(at::IntArrayRef shape, const at::Tensor& like);

}  // namespace birnn
