// How a block that waits for another comes to an end (G2, G3). Whoever has looked `patience` times in vain raises the flag, which
// all others look at while they wait, and the alarm, which the host reads when it is called next. Each block then fills what it
// still owes with NaN.
//
// Not here: what is waited for (exchange.h, push.h).
#pragma once

#include <cuda/seam.h>

#include "kernels.h"

namespace birnn {
namespace cuda {

constexpr int look_at_flag = 256;  // every so many vain looks

BIRNN_DEVICE bool flag_is_up(const Exchange& x) { return load_word(x.flag) != 0; }

// Whether to give up after so many looks.
BIRNN_DEVICE bool gives_up(const Exchange& x, int64_t looks) {
  if (looks < x.patience) return looks % look_at_flag == 0 && flag_is_up(x);
  store_word(x.flag, 1);
  store_for_host(x.alarm, 1);
  return true;
}

}  // namespace cuda
}  // namespace birnn
