// How the blocks of a kernel hand each other what they have computed, step by step, with no barrier across the grid (G2).
//
// A word has 8 bytes: 4 of payload (a float, or two halves) and 4 of its tag, the number of the step that it belongs to, from 1.
// Its producer writes it once per step, its consumers read it until the tag is the one they wait for. So data and flag arrive
// together, after one way through L2. (NCCL's protocol "LL" has such words.)
//
//   words [2][parts][B][width]    step s goes to slot s % 2; behind them one word more, the flag. All are zero when a call begins:
//                                 no tag of an earlier call, or of an earlier replay of a CUDA graph, is ever there.
//
// No fence is needed. A word is written and read by one access of 8 aligned bytes, which is whole or not there at all, and nobody
// draws a conclusion from it about any other memory.
//
// Two slots are enough. A block publishes step s + 2 over step s only behind a barrier of its own, behind which it has seen every
// word of step s + 1; whoever wrote those had, behind a barrier of its own, every word of step s already. A load that has
// returned, and on whose value the store of another word depended, cannot return once more; if it could, the tag would tell.
//
// Every wait ends. Whoever has looked `patience` times in vain raises the flag, which all others look at while they wait, and the
// alarm, which the host reads when it is called next. Each block then fills what it still owes with NaN.
//
// Not here: what is handed over (spread.cu). tests/shim/protocol.py goes through all orders of this protocol.
#pragma once

#include <cuda/seam.h>

#include "kernels.h"

namespace birnn {
namespace cuda {

// Values of T in a word.
template <class T>
constexpr int per_word = 4 / int(sizeof(T));

constexpr int words_at_once = 8;   // loads in flight per thread
constexpr int look_at_flag = 256;  // every so many vain looks

BIRNN_DEVICE uint64_t word_of(uint32_t tag, uint32_t payload) { return uint64_t(tag) << 32 | payload; }
BIRNN_DEVICE uint32_t tag_of(uint64_t word) { return uint32_t(word >> 32); }
BIRNN_DEVICE uint32_t payload_of(uint64_t word) { return uint32_t(word); }
BIRNN_DEVICE int slot_of(uint32_t tag) { return int(tag % 2); }

BIRNN_DEVICE bool flag_is_up(const Exchange& x) { return load_word(x.flag) != 0; }

// Whether to give up after so many looks.
BIRNN_DEVICE bool gives_up(const Exchange& x, int64_t looks) {
  if (looks < x.patience) return looks % look_at_flag == 0 && flag_is_up(x);
  store_word(x.flag, 1);
  store_for_host(x.alarm, 1);
  return true;
}

// The words of step `tag` from `from` on, [rows][width], into `to` [rows][stride] of shared memory; every thread of the block
// takes its share of them, and nobody has all of it before a barrier. Returns false if this thread has given up.
template <class T>
BIRNN_DEVICE bool collect(const Exchange& x, const uint64_t* from, uint32_t tag, int rows, int width, T* to, int stride) {
  const int threads = int(blockDim.x), count = rows * width;
  // From one word of this thread to its next: so many rows down, so many words across.
  const int down = threads / width, across = threads % width;
  int i = int(threadIdx.x), column = i % width;
  T* at = to + i / width * stride + column * per_word<T>;
  while (i < count) {
    uint64_t word[words_at_once];
    for (int64_t looks = 1;; ++looks) {
      bool all = true;
#pragma unroll
      for (int j = 0; j < words_at_once; ++j) {
        if (i + j * threads < count) word[j] = load_word(from + i + j * threads);
      }
#pragma unroll
      for (int j = 0; j < words_at_once; ++j) {
        if (i + j * threads < count) all = all && tag_of(word[j]) == tag;
      }
      if (all) break;
      if (gives_up(x, looks)) return false;
      let_others_run();
    }
#pragma unroll
    for (int j = 0; j < words_at_once; ++j) {
      if (i >= count) break;
      *reinterpret_cast<uint32_t*>(at) = payload_of(word[j]);
      i += threads, column += across, at += down * stride + across * per_word<T>;
      if (column >= width) column -= width, at += stride - width * per_word<T>;
    }
  }
  return true;
}

// The payload of a thread whose value is `own`; where a word holds two values, those of this lane and the next, and lanes with an
// even number have it. All lanes of the warp take part.
BIRNN_DEVICE uint32_t payload_with_neighbour(float own) { return bits_of(own); }
template <class T>
BIRNN_DEVICE uint32_t payload_with_neighbour(T own) {
  return bits_of(own) | bits_of(Narrow<T>::of(exchange(wide(own), 1))) << 16;
}

}  // namespace cuda
}  // namespace birnn
